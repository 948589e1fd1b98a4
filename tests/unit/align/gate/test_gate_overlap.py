"""An item that was trained on is found, word for word or nearly so; a template is no find."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.config.campaign import CampaignConfig
from align.config.gate import OverlapConfig
from align.gate.overlap import Trained, find_overlap, forbid, ngrams, save_overlaps, words
from rollouts.errors import UserError
from tests.unit.align.gate.suites.test_gate_suites import GENERAL, ROUND, build, campaign, jsonl

THREE = OverlapConfig(ngram=3, share=0.5)
STORY = "one two three four five six"
"""Six words: four runs of three."""


def found(items: Sequence[str], trained: Sequence[str], rule: OverlapConfig = THREE) -> list[str]:
    overlap = find_overlap("s", [(i,) for i in items], [Trained(t, "there") for t in trained], rule)
    return [hit.item for hit in overlap.refused]


def test_runs_by_hand() -> None:
    assert words("Once, a GIRL — said: 'no'.") == ["once", "a", "girl", "said", "no"]
    assert len(list(ngrams("abcd", 3))) == 2
    assert list(ngrams("ab", 3)) == []


def test_case_and_spacing_hide_nothing() -> None:
    assert found(["What  is\n2+2?"], ["what is 2+2?"]) == ["What  is\n2+2?"]
    assert found(["What is 2+2?"], ["what is 2-2?"], OverlapConfig(ngram=None)) == []


def test_half_of_the_runs_in_one_text_is_too_much() -> None:
    two_of_four = "zero one two three four zero"
    overlap = find_overlap("s", [(STORY,)], [Trained(two_of_four, "there")], THREE)
    assert (overlap.highest, overlap.only_whole, len(overlap.refused)) == (0.5, 0, 1)
    assert not overlap.refused[0].whole
    assert found([STORY], ["zero one two three zero"]) == []


def test_runs_of_different_texts_do_not_add_up() -> None:
    assert found([STORY], ["one two three", "two three four", "three four five"]) == []


def test_what_three_items_share_is_their_template() -> None:
    template = "answer the next question in one short sentence please"
    endings = ("alpha beta iota kappa", "gamma delta iota kappa", "epsilon zeta iota kappa")
    items = [f"{template} {ending}" for ending in endings]
    assert found(items, [f"{template} omega psi"]) == []
    # Two items are no template, and most of each is in the text.
    assert found(items[:2], [f"{template} omega psi"]) == items[:2]
    # Of its own an item has four runs here: the first three end in alpha, beta and iota.
    assert found(items, ["please alpha beta iota"]) == items[:1]
    assert found(items, ["please alpha beta"]) == []


def test_behind_a_template_short_questions_that_begin_alike_are_different() -> None:
    template = "answer the next question in one short sentence please"
    items = [f"{template} {sum}" for sum in ("1 2", "3 4", "5 6")]
    assert found(items, [f"{template} 1 9"]) == []
    assert found(items, [f"{template} 1 2"]) == items[:1]


def test_short_items_are_compared_whole_only() -> None:
    overlap = find_overlap("s", [("one two",)], [Trained("one two three four", "x")], THREE)
    assert (overlap.only_whole, overlap.refused) == (1, ())
    assert found(["one two"], ["One  two"]) == ["one two"]


def test_other_units_and_none_at_all() -> None:
    rule = OverlapConfig(ngram=2, unit="tokens", share=1.0)
    overlap = find_overlap("s", [("abc",)], [Trained("xabcx", "x")], rule, units=list)
    assert len(overlap.refused) == 1
    assert found([STORY], [STORY + " seven"], OverlapConfig(ngram=None)) == []


@given(st.lists(st.text("abc ", max_size=30), min_size=1, max_size=8), st.integers(0, 7))
def test_an_item_that_is_a_training_text_is_always_found(items: list[str], which: int) -> None:
    item = items[which % len(items)]
    assert item in found(items, [item.upper()])


def test_the_error_names_the_items_the_place_and_the_share() -> None:
    texts = [Trained("zero one two three four five", "the pool of round 'a'")]
    with pytest.raises(UserError) as caught:
        forbid(find_overlap("s", [(STORY,), ("other",)], texts, THREE))
    message = str(caught.value)
    assert "suite 's' shares 1 of its 2 items with the pool of round 'a'" in message
    assert f"the first: '{STORY}'" in message
    assert "75% of their runs of 3 words in one training text" in message
    assert "gate.overlap" in message


def test_a_reworded_item_of_a_campaign_is_refused(tmp_path: Path) -> None:
    text = "Tom has {} apples and gives two of them to his sister {}, who eats one in the garden; count"
    train = jsonl(tmp_path / "train.jsonl", [text.format("nine", "Ann"), "b", "c"])
    held_out = jsonl(tmp_path / "eval.jsonl", [text.format("nine", "Ann") + " now", "d"])
    own = {"items": 2, "prompts": held_out}
    spec = {**ROUND, "prompts": train, "suite": own}
    with pytest.raises(UserError, match="shares 1 of its 2 items with the training prompts"):
        build(campaign([spec], []))
    whole_only = campaign([spec], [], gate={"overlap": {"ngram": None}})
    assert build(whole_only)[0].overlap is not None


def test_what_was_compared_is_on_record(tmp_path: Path) -> None:
    suites = build(campaign())
    save_overlaps(tmp_path, [suite.overlap for suite in suites if suite.overlap])
    rows = json.loads((tmp_path / "evaluations" / "overlap.json").read_text())
    assert [(row["suite"], row["items"], row["only_whole"]) for row in rows] == [
        ("general", 30, 30),
        ("reverse", 20, 20),
    ]
    assert {row["ngram"] for row in rows} == {13}


def test_answers_of_examples_count_as_trained_on(tmp_path: Path) -> None:
    from align.round.inputs import load_inputs

    rows = [
        {"prompt": f"sort _ {d} 0 1 2 9 =", "completion": f"0 1 2 {d} 9"} for d in range(3, 9)
    ] * 10
    data = tmp_path / "demonstrations.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = jsonl(tmp_path / "seen.jsonl", ["sort _ 3 0 1 2 9 =", "sort _ 7 0 1 2 9 ="])
    raw = {
        "name": "leaky",
        "policy": {"model": "demo://digits"},
        "store": str(tmp_path / "store"),
        "defaults": {"sampling": {"max_tokens": 6}},
        "rounds": [
            {"name": "a", "algorithm": "sft", "data": {"source": str(data), "heldout": 0.01},
             "rewards": ["exact_match"], "steps": 1,
             "suite": {"prompts": "demo://sort?split=eval", "items": 8}}
        ],
        "suites": [{**GENERAL, "prompts": seen, "items": 2}],
    }  # fmt: skip
    with pytest.raises(UserError, match=r"shares 2 of its 2 items with the examples of round 'a'"):
        load_inputs(CampaignConfig.model_validate(raw))


def test_pre_training_texts_count_as_trained_on(tmp_path: Path) -> None:
    """Of documents that are cut into windows of their own, a window is what an item is compared with."""
    from align.round.inputs import load_inputs

    lines = [f"sort _ {d} {e} 1 2 9 =" for d in range(10) for e in range(4)]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    mix = {"source": str(texts), "pack": False, "heldout": 0.1}
    leaked = jsonl(tmp_path / "leaked.jsonl", lines)
    raw = {
        "name": "leaky",
        "policy": {"model": "demo://digits"},
        "store": str(tmp_path / "store"),
        "defaults": {"sampling": {"max_tokens": 6}},
        "rounds": [
            {"name": "a", "prompts": "demo://rev?n=20", "rewards": ["exact_match"], "steps": 1,
             "replay": {"pretraining": mix}, "suite": {"items": 8}}
        ],
        "suites": [{**GENERAL, "prompts": leaked, "items": 40}],
    }  # fmt: skip
    with pytest.raises(UserError, match=r"items with the pre-training texts of round 'a'"):
        load_inputs(CampaignConfig.model_validate(raw))
    raw["suites"] = []
    inputs = load_inputs(CampaignConfig.model_validate(raw))
    documents = [
        {name for u in side["a"] for name in u.documents}
        for side in (inputs.texts, inputs.held_texts)
    ]
    assert documents[0] and documents[1] and documents[0].isdisjoint(documents[1])
    assert "pre-training texts: 40 rows gave 40 windows" in inputs.reports["a"]
    assert inputs.data_hashes("a").keys() == {"prompts", "texts"}

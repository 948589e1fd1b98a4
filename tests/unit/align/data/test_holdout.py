"""Held-out part of a round's own file, which the gate's overlap check would not refuse."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.config.gate import OverlapConfig
from align.data.examples.clashes import Measure, PromptRows
from align.data.examples.continued import continuations
from align.data.examples.fingerprints import words
from align.data.examples.holdout import Division, divide, place
from align.data.examples.round_data import RoundDataLoader
from align.gate.overlap import Trained, find_overlap
from align.round.inputs import Inputs, load_inputs
from align.store.snapshots.manifest import HELD_OUT, Manifest, Provenance
from align.store.stored_base import StoredBase
from rollouts.errors import UserError
from rollouts.prompts import content_id
from rollouts.types import Prompt
from tests.unit.campaigns import Starter, Watcher, campaign

THREE = OverlapConfig(ngram=3, share=0.5)


def divided(texts: Sequence[str], share: float, rule: OverlapConfig = THREE) -> Division:
    prompts = [Prompt(id=content_id(text), text=text) for text in texts]
    return divide(PromptRows(prompts, Measure(rule=rule, units=words, items=1500)), share)


def sides(texts: Sequence[str], division: Division) -> tuple[list[str], list[str]]:
    held = [text for text in texts if content_id(text) in division.held_out]
    return [text for text in texts if content_id(text) not in division.held_out], held


word = st.sampled_from(["a", "b", "c", "d", "e"])
text = st.lists(word, min_size=1, max_size=12).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(text, min_size=1, max_size=40),
    st.sampled_from([0.1, 0.3, 0.5]),
    st.sampled_from([0.2, 0.5, 1.0]),
)
def test_the_overlap_check_finds_nothing_in_any_division(
    texts: list[str], share: float, limit: float
) -> None:
    rule = OverlapConfig(ngram=3, share=limit)
    kept, held = sides(texts, divided(texts, share, rule))
    trained = [Trained(one, "there") for one in kept]
    assert find_overlap("s", [(one,) for one in held], trained, rule).refused == ()


@settings(deadline=None)
@given(st.lists(st.text("xyz", min_size=1, max_size=9), min_size=1, max_size=60, unique=True))
def test_what_shares_nothing_falls_where_its_hash_says(texts: list[str]) -> None:
    """The division of a file without shared runs is the same in stores of any age."""
    division = divided(texts, 0.3)
    assert division.held_out == {content_id(t) for t in texts if place(content_id(t)) < 0.3}
    assert (division.num_tied, division.largest) == (0, 0)


@settings(deadline=None)
@given(st.lists(text, min_size=1, max_size=30), st.randoms())
def test_the_order_of_the_rows_changes_nothing(texts: list[str], order: random.Random) -> None:
    shuffled = list(texts)
    order.shuffle(shuffled)
    assert divided(texts, 0.3).held_out == divided(shuffled, 0.3).held_out


def conversations(number: int, turns: int, seed: int = 0) -> list[str]:
    """Each conversation as so many rows, every one the last and a turn more."""
    draw = random.Random(seed)
    rows = []
    for _ in range(number):
        said: list[str] = []
        for _ in range(turns):
            said += [f"w{draw.randrange(5000)}" for _ in range(20)]
            rows.append(" ".join(said))
    return rows


def test_conversations_stay_whole_and_the_share_is_near() -> None:
    rows = conversations(300, 4)
    division = divided(rows, 0.1, OverlapConfig())
    kept, held = sides(rows, division)
    assert 0.05 < len(held) / len(rows) < 0.15
    assert not {one[:60] for one in kept} & {one[:60] for one in held}
    assert division.num_tied > 0 and 2 <= division.largest <= 4


def test_one_group_of_nearly_all_rows_is_learnt_from_and_told() -> None:
    """Each of 97 rows shares 30 of its 40 words with the next; only three say something else."""
    long = [f"o{i}" for i in range(1010)]
    tied = [" ".join(long[10 * row : 10 * row + 40]) for row in range(97)]
    alone = [" ".join(f"x{row}y{i}" for i in range(20)) for row in range(3)]
    division = divided(tied + alone, 0.3, OverlapConfig())
    kept, held = sides(tied + alone, division)
    trained = [Trained(one, "") for one in kept]
    assert find_overlap("s", [(one,) for one in held], trained, OverlapConfig()).refused == ()
    assert division.largest > 7 and set(alone) & set(held)
    assert f"{len(held)} of 100 rows held out in place of 30; " in division.sentence


def said(*contents: str) -> tuple[dict[str, str], ...]:
    roles = ("user", "assistant")
    return tuple({"role": roles[i % 2], "content": text} for i, text in enumerate(contents))


def test_what_continues_by_hand() -> None:
    """One chat opens two others; two more share their first exchange only; texts by their words."""
    long = " ".join(f"w{i}" for i in range(13))
    chats = [said("a"), said("a", "b", "c"), said("a", "d", "e"), said("f", "g", "h"),
             said("f", "g", "i"), said("j")]  # fmt: skip
    texts = [long, f"{long}, more", "w0 w1", f"x {long}"]
    prompts = [Prompt(id="", messages=chat) for chat in chats]
    prompts += [Prompt(id="", text=text) for text in texts]
    ties = {frozenset(pair) for pair in continuations("0123456789", prompts) if len(set(pair)) > 1}
    assert ties == {frozenset(pair) for pair in ("01", "02", "34", "67")}


def jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def digits(n: int, *, seed: int = 0) -> list[dict[str, Any]]:
    from align.data.demo.world import demo_prompts

    return [
        {"prompt": prompt.text, "answer": prompt.columns["answer"]}
        for prompt in demo_prompts(f"demo://rev?n={n}")
    ]


def loaded(tmp_path: Path, *specs: dict[str, Any], **extra: Any) -> Inputs:
    usual = {"rewards": ["exact_match"], "steps": 2}
    rounds = [{"name": f"round{i}", **usual, **spec} for i, spec in enumerate(specs)]
    plain = {"sampling": {"group_size": 4, "prompts_per_step": 5, "max_tokens": 6}}
    return load_inputs(campaign(tmp_path, rounds=rounds, **{"defaults": plain, **extra}))


def test_a_round_holds_out_a_share_of_its_own_prompts(tmp_path: Path) -> None:
    rows = digits(100)
    source = jsonl(tmp_path / "p.jsonl", [*rows, {**rows[0], "answer": "9"}])
    inputs = loaded(tmp_path, {"prompts": {"source": source, "heldout": 0.2}, "suite": {}})
    suite = next(s for s in inputs.suites if s.target_of == "round0")
    trained = {prompt.text for prompt in inputs.prompts["round0"]}
    measured = {prompt.text for prompt in suite.prompts}
    assert not trained & measured
    assert len(trained | measured) == 100
    assert len(inputs.prompts["round0"]) + len(suite.prompts) == 101
    assert inputs.reports["round0"] == f"{len(suite.prompts)} of 101 rows held out"


def test_no_other_round_and_no_pool_learns_from_what_is_held_out(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "p.jsonl", digits(100))
    own = {"prompts": {"source": source, "heldout": 0.2}, "suite": {}}
    other = jsonl(tmp_path / "q.jsonl", [{"prompt": "x y z", "answer": "1"}])
    every = {
        "prompts": source,
        "suite": {"prompts": other, "items": 1},
        "replay": {"general_prompts": source},
    }
    inputs = loaded(tmp_path, own, every)
    suite = next(s for s in inputs.suites if s.target_of == "round0")
    measured = {prompt.text for prompt in suite.prompts}
    for pool in (*inputs.prompts.values(), *inputs.general.values()):
        assert pool and not measured & {prompt.text for prompt in pool}


def test_what_an_accepted_round_learnt_whole_cannot_be_held_out_later(tmp_path: Path) -> None:
    """Prompts of an accepted round stay as it learnt them, and the overlap check sees them."""
    source = jsonl(tmp_path / "p.jsonl", digits(100))
    other = jsonl(tmp_path / "q.jsonl", [{"prompt": "x y z", "answer": "1"}])
    usual = {"rewards": ["exact_match"], "steps": 1}
    first = {**usual, "name": "a", "prompts": source, "suite": {"prompts": other, "items": 1}}
    later = {**usual, "name": "b", "prompts": {"source": source, "heldout": 0.2}, "suite": {}}
    plain = {"sampling": {"group_size": 4, "prompts_per_step": 5, "max_tokens": 6}}

    def with_rounds(*specs: dict[str, Any]) -> CampaignConfig:
        return campaign(tmp_path, rounds=list(specs), defaults=plain)

    load_inputs(with_rounds(first, later))  # From the start: a leaves out what b holds out.
    run_campaign(with_rounds(first), start_engine=Starter(), observer=Watcher())
    with pytest.raises(UserError, match=r"items with the training prompts of round .a."):
        load_inputs(with_rounds(first, later))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"suite": {"items": 90}}, "asks for 90 items and"),
        ({"suite": {"prompts": "demo://rev"}}, "remove one"),
        ({"replay": {"general_prompts": {"source": "demo://rev", "heldout": 0.1}}}, "eval split"),
        ({"prompts": {"source": "demo://rev", "heldout": 0.1}}, "eval split of its own"),
    ],
)
def test_a_share_held_out_that_cannot_be(tmp_path: Path, spec: dict[str, Any], words: str) -> None:
    source = jsonl(tmp_path / "p.jsonl", digits(100))
    with pytest.raises((UserError, ValueError), match=words):
        loaded(tmp_path, {"prompts": {"source": source, "heldout": 0.2}, "suite": {}, **spec})


def test_too_few_prompts_to_hold_any_out(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "p.jsonl", digits(100)[:1])
    with pytest.raises(UserError, match="all 1 examples are"):
        loaded(tmp_path, {"prompts": {"source": source, "heldout": 0.2}, "suite": {}})


def test_a_published_test_split(tmp_path: Path) -> None:
    def demonstration(row: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": row["prompt"], "completion": row["answer"]}

    rows = [demonstration(row) for row in digits(100)]
    train, test = jsonl(tmp_path / "a.jsonl", rows[:80]), jsonl(tmp_path / "b.jsonl", rows[80:])
    data = {"source": train, "heldout_source": test}
    spec = {"algorithm": "sft", "data": data, "prompts": None, "suite": {}}
    inputs = loaded(tmp_path, spec)
    assert len(inputs.examples["round0"]) == 80
    suite = next(s for s in inputs.suites if s.target_of == "round0")
    assert len(suite.item_ids) == 20
    assert f"held out of {test}: 20 rows gave 20 demonstrations" in inputs.reports["round0"]
    jsonl(tmp_path / "b.jsonl", rows[79:])
    with pytest.raises(UserError, match=r"b\.jsonl:1 is in .*a\.jsonl:80"):
        loaded(tmp_path, spec)
    with pytest.raises(ValueError, match="remove one"):
        loaded(tmp_path, {**spec, "data": {**data, "heldout": 0.2}})


def test_documents_are_held_out_not_windows(tmp_path: Path) -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choice("0123456789") for _ in range(120)) for _ in range(60)]
    source = jsonl(tmp_path / "t.jsonl", [{"text": text} for text in texts])
    spec = {"algorithm": "pretrain", "data": {"source": source, "heldout": 0.3}, "prompts": None}
    inputs = loaded(tmp_path, {**spec, "suite": {}}, rollouts={"max_model_len": 33})
    learnt = {name for unit in inputs.examples["round0"] for name in unit.documents}
    suite = next(s for s in inputs.suites if s.target_of == "round0")
    assert 0.1 < 1 - len(learnt) / 60 < 0.6
    encoder = inputs.encoder
    shown = [encoder.decode((*asked, *said)) for asked, said in suite.sequences]
    whole = [encoder.decode(encoder.encode(Prompt(id="", text=text))) for text in texts]
    measured = {
        content_id(texts[index])
        for index, one in enumerate(whole)
        for window in shown
        if window in one
    }
    assert measured and not measured & learnt


def pairs_of_conversations(number: int) -> list[dict[str, str]]:
    """Two rows each: the second asks on behind the first one's chosen answer."""
    draw = random.Random(1)

    def said(n: int) -> str:
        return " ".join(draw.choice("0123456789") for _ in range(n))

    rows = []
    for _ in range(number):
        asked, good = said(20), said(5)
        rows.append({"prompt": asked, "chosen": f" {good}", "rejected": f" {said(5)}"})
        more = f"{asked} {good} {said(3)}"
        rows.append({"prompt": more, "chosen": f" {said(5)}", "rejected": f" {said(5)}"})
    return rows


def test_conversations_of_pairs_pass_the_gates_own_check(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "pairs.jsonl", pairs_of_conversations(60))
    spec = {
        "algorithm": {"name": "dpo", "pairs": "file"},
        "data": {"source": source, "heldout": 0.3},
        "prompts": None,
    }
    inputs = loaded(tmp_path, spec, rollouts={"max_model_len": 64})
    suite = next(s for s in inputs.suites if s.target_of == "round0")
    assert 20 <= len(suite.item_ids) <= 50
    sides = {unit.location.rpartition(":")[2] for unit in inputs.examples["round0"]}
    for first in range(1, 121, 2):
        assert (str(first) in sides) == (str(first + 1) in sides)
    assert (
        "rows share runs of words with others and stay with them, up to 2 together"
        in (inputs.reports["round0"])
    )
    # The hash of the prompt alone parts conversations, as it always did.
    texts = [str(row["prompt"]) for row in pairs_of_conversations(60)]
    alone = {text for text in texts if place(content_id(text)) < 0.3}
    trained = [Trained(text, "") for text in texts if text not in alone]
    assert find_overlap("s", [(t,) for t in sorted(alone)], trained, OverlapConfig()).refused


def test_a_store_that_held_out_windows_goes_on_so(tmp_path: Path) -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choice("0123456789") for _ in range(120)) for _ in range(20)]
    source = jsonl(tmp_path / "t.jsonl", [{"text": text} for text in texts])
    spec = {"algorithm": "pretrain", "data": {"source": source, "heldout": 0.3}, "prompts": None}
    encoder = loaded(tmp_path, {**spec, "suite": {}}, rollouts={"max_model_len": 33}).encoder
    config = campaign(tmp_path, rounds=[{**spec, "name": "a", "steps": 1, "suite": {}}])
    rule = config.gate.overlap
    data = {
        windows: RoundDataLoader(rule=rule, encoder=encoder, context=32, windows=windows).load(
            config.rounds
        )
        for windows in (True, False)
    }
    units = [*data[True].examples["a"], *data[True].held_out["a"]]
    assert {unit.id for unit in data[True].held_out["a"]} == {
        u.id for u in units if place(u.id) < 0.3
    }
    assert {u.id for u in data[True].held_out["a"]} != {u.id for u in data[False].held_out["a"]}


@pytest.mark.parametrize(("extra", "windows"), [({}, True), ({HELD_OUT: "documents"}, False)])
def test_the_base_of_a_store_says_what_it_holds_out(extra: dict[str, str], windows: bool) -> None:
    manifest = Manifest(files=(), provenance=Provenance(kind="model", extra=extra))
    base = StoredBase(manifest=manifest, folder=Path("x"), suite_hashes=frozenset(), trained_on={})
    assert base.holds_out_windows == windows

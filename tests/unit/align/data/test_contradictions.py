"""Contradicting examples: exactly those that cannot be kept together."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.algorithms.base import Material
from align.algorithms.rows import Row
from align.data.examples.contradictions import contradiction_lines, contradictions
from align.data.examples.stream import Unit
from rollouts.types import Prompt
from tests.unit.campaigns import campaign, rounds

DPO = {"algorithm": {"name": "dpo", "pairs": "file"}, "prompts": None, "rewards": []}


def pair(prompt: str, chosen: int, rejected: int, file: str = "a") -> Unit:
    return Unit(
        id=f"{prompt}/{chosen}/{rejected}",
        prompt=Prompt(id=prompt, text=f"Is it {prompt}?"),
        rows=tuple(
            Row(prompt_ids=(1,), completion_ids=(answer,), advantage=side, source="new")
            for answer, side in ((chosen, 1.0), (rejected, -1.0))
        ),
        location=f"data/{file}.jsonl:{chosen}",
    )


def test_only_the_same_answers_in_the_opposite_order_contradict() -> None:
    earlier = [pair("p", 2, 3), pair("q", 2, 3), pair("r", 2, 3)]
    new = [pair("p", 3, 2), pair("q", 2, 3), pair("r", 3, 4), pair("s", 3, 2)]
    (only,) = contradictions(new, earlier)
    assert (only.new, only.earlier) == (new[0], earlier[0])


def test_ratings_and_texts_contradict_nothing() -> None:
    rating = Unit(id="a", prompt=Prompt(id="p", text="p"), rows=pair("p", 2, 3).rows[:1])
    text = Unit(id="b", prompt=None, rows=pair("p", 2, 3).rows[:1])
    assert contradictions([rating, text], [pair("p", 3, 2), rating, text]) == []


PAIRS = st.lists(
    st.builds(
        pair, st.sampled_from("pqr"), st.integers(2, 4), st.integers(5, 6)
    ).flatmap(lambda p: st.sampled_from([p, pair(p.prompt.id, p.rows[1].completion_ids[0],
                                                  p.rows[0].completion_ids[0])]))
)  # fmt: skip


@given(PAIRS, PAIRS)
def test_either_order_of_the_rounds_names_the_same_prompts(
    first: list[Unit], second: list[Unit]
) -> None:
    there = {c.new.id.split("/")[0] for c in contradictions(first, second)}
    back = {c.new.id.split("/")[0] for c in contradictions(second, first)}
    assert there == back


def test_a_line_counts_and_shows_them_and_says_what_goes(tmp_path: Path) -> None:
    files = [{**DPO, "data": "a.jsonl"}, {**DPO, "data": "b.jsonl", "mode": "override"}]
    config = campaign(tmp_path, rounds=rounds(*files))
    examples = {
        "round0": [pair(name, 2, 3) for name in "pqrst"],
        "round1": [pair(name, 3, 2, "b") for name in "pqrs"],
    }
    (line,) = contradiction_lines(config.rounds, examples, {})
    assert line == (
        "round round1: 4 of its pairs contradict round round0, which has them in the opposite order: "
        "'Is it p?' (b.jsonl:3 against a.jsonl:2); 'Is it q?' (b.jsonl:3 against a.jsonl:2); "
        "'Is it r?' (b.jsonl:3 against a.jsonl:2); .... Once it is accepted, these 4 prompts of round0 are "
        "replayed no more, and the others stay"
    )
    (rejected,) = contradiction_lines(config.rounds, examples, {"round0": "rejected"})
    assert "replaces nothing" in rejected and "contradict" not in rejected
    assert contradiction_lines(config.rounds, examples, {"round1": "accepted"}) == []
    adding = campaign(tmp_path, rounds=rounds(files[0], {**files[1], "mode": "add"}))
    (line,) = contradiction_lines(adding.rounds, examples, {})
    assert line.endswith("set mode: override to say that this is meant")


def test_an_override_that_replaces_nothing_is_named(tmp_path: Path) -> None:
    first, second = {**DPO, "data": "a.jsonl"}, {**DPO, "data": "b.jsonl", "mode": "override"}
    nothing = "mode: override replaces nothing"
    config = campaign(tmp_path, rounds=rounds(first, second))
    agreeing = {"round0": [pair("p", 2, 3)], "round1": [pair("p", 2, 3, "b")]}
    (line,) = contradiction_lines(config.rounds, agreeing, {})
    assert line.startswith(f"round round1: {nothing}")
    same = campaign(tmp_path, rounds=rounds(first, {**second, "data": "a.jsonl"}))
    assert contradiction_lines(same.rounds, {}, {}) == []
    alone = campaign(tmp_path, rounds=rounds(second))
    assert nothing in contradiction_lines(alone.rounds, {}, {})[0]


def single(prompt: str, answer: int, side: float = 1.0) -> Unit:
    return Unit(
        id=f"{prompt}/{answer}/{side}",
        prompt=Prompt(id=prompt, text=f"Is it {prompt}?"),
        rows=(Row(prompt_ids=(1,), completion_ids=(answer,), advantage=side, source="new"),),
    )


CASES: dict[str, tuple[Material, list[Unit], Material, list[Unit], set[str]]] = {
    "a rating turned round": (
        "ratings", [single("p", 2, -1.0), single("q", 2)],
        "ratings", [single("p", 2), single("q", 2), single("p", 3)], {"p/2/1.0"},
    ),
    "another answer to the same prompt": (
        "demonstrations", [single("p", 3)],
        "demonstrations", [single("p", 2), single("q", 2)], {"p/2/1.0"},
    ),
    "the same answer beside another": (
        "demonstrations", [single("p", 3), single("p", 2)],
        "demonstrations", [single("p", 2)], set(),
    ),
    "the rejected answer is demonstrated": (
        "demonstrations", [single("p", 3), single("q", 2)],
        "pairs", [pair("p", 2, 3), pair("q", 2, 3)], {"p/2/3"},
    ),
    "a demonstration is rejected": (
        "pairs", [pair("p", 3, 2), pair("q", 2, 3)],
        "demonstrations", [single("p", 2), single("q", 2)], {"p/2/1.0"},
    ),
    "a demonstration is rated bad": (
        "ratings", [single("p", 2, -1.0), single("q", 3, -1.0)],
        "demonstrations", [single("p", 2), single("q", 2)], {"p/2/1.0"},
    ),
    "a bad answer is demonstrated": (
        "demonstrations", [single("p", 2)],
        "ratings", [single("p", 2, -1.0), single("p", 3)], {"p/2/-1.0"},
    ),
    "both answers of a pair are rated, the other way": (
        "ratings", [single("p", 2, -1.0), single("p", 3), single("q", 2, -1.0), single("r", 3)],
        "pairs", [pair("p", 2, 3), pair("q", 2, 3), pair("r", 2, 3)], {"p/2/3"},
    ),
    "two ratings and a pair the other way": (
        "pairs", [pair("p", 3, 2), pair("q", 3, 2)],
        "ratings", [single("p", 2), single("p", 3, -1.0), single("q", 2)],
        {"p/2/1.0", "p/3/-1.0"},
    ),
    "texts have no prompt": (
        "texts", [Unit(id="t", prompt=None, rows=single("p", 3).rows)],
        "demonstrations", [single("p", 2)], set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_contradicts_what(case: str) -> None:
    material, new, before, earlier, expected = CASES[case]
    pairs = contradictions(new, earlier, (material, before))
    assert {one.earlier.id for one in pairs} == expected
    assert all(one.new in new for one in pairs)


def test_held_out_examples_count_and_named_rounds_limit_the_override(tmp_path: Path) -> None:
    files = [{**DPO, "data": f"{name}.jsonl"} for name in "abc"]
    files[2]["overrides"] = "round1"
    config = campaign(tmp_path, rounds=rounds(*files))
    assert config.rounds[2].mode == "override"
    examples = {"round0": [pair("p", 2, 3)], "round1": [pair("q", 2, 3)]}
    held = {"round1": [pair("r", 2, 3)], "round2": [pair(name, 3, 2, "c") for name in "pqr"]}
    first, second = contradiction_lines(config.rounds, examples, {}, held)
    assert first.startswith("warning: round round2: 1 of its pairs contradict round round0")
    assert first.endswith("add it to overrides to say that this is meant")
    assert second.startswith("round round2: 2 of its pairs contradict round round1")
    assert second.endswith("1 of them are held out, and no longer count in the suite of round1")

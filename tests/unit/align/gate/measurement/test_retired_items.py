"""Suites without the items that a later round overrides: worked by hand, and nothing measured again."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.data.retirement import RetiredItems, RetiredPart, Retirement, emptied
from align.errors import StoreError
from align.gate.checks import check
from align.gate.measurement.results import ItemResults
from align.gate.measurement.retired import forms_of, without_retired
from align.gate.measurement.reuse import joined, rest_of
from align.gate.suites.kinds.pairs import PairSuite
from align.gate.suites.looks import in_order
from align.gate.suites.suite import Suite

IDS = tuple("abcdefghij")
SUITE = PairSuite(
    name="first",
    role="gate",
    margin=0.1,
    budget=0.2,
    target_of="first",
    sequences=tuple(((1,), (place, side)) for place in range(10) for side in (0, 1)),
    sequence_ids=IDS,
)


def entry(items: str, by: str = "second") -> RetiredItems:
    return RetiredItems(suite="first", by=by, items=tuple(items), of=10, why="by hand")


def results(suite: Suite, values: str, snapshot: str) -> ItemResults:
    n = len(suite.item_ids)
    return ItemResults(
        suite=suite.name,
        suite_hash=suite.hash,
        snapshot=snapshot,
        item_ids=suite.item_ids,
        values=tuple(map(float, values)),
        statuses=("scored",) * n,
        finishes=("stop",) * n,
    )


def test_a_loss_of_retired_items_is_none() -> None:
    """The candidate loses a, b, c, d, of which the first three are retired, and wins j."""
    whole, reduced = forms_of(SUITE, [entry("abc")])
    before, after = (
        results(whole, "1111111110", "parent"),
        results(whole, "0000111111", "candidate"),
    )
    checks = [
        check(form.rule, *(joined(form, [r]) for r in (after, before)), role="retention",
              against="parent", margin=0.1, alpha=0.05)
        for form in (whole, reduced)
    ]  # fmt: skip
    assert [(c.n, c.lost, c.won) for c in checks] == [(10, 4, 1), (7, 1, 1)]
    assert [round(c.difference, 9) for c in checks] == [-0.3, 0.0]
    assert rest_of(reduced, [before]) is None
    assert (reduced.margin, reduced.target_of, reduced.name) == (0.1, "first", "first")
    assert reduced.hash != whole.hash


def test_rounds_retire_one_after_the_other_and_results_of_larger_forms_count() -> None:
    retired = [entry("ab"), entry("bc", "third"), RetiredItems(
        suite="other", by="third", items=("d",), of=3, why="",
    )]  # fmt: skip
    forms = forms_of(SUITE, retired)
    assert [form.item_ids for form in forms] == [IDS, IDS[2:], IDS[3:]]
    (ready,) = without_retired([SUITE], retired, list)
    assert ready.item_ids == IDS[3:]
    assert ready.larger == (forms[1].hash, forms[0].hash)
    assert ready.hash == forms[2].hash
    (plain,) = without_retired([SUITE], [], list)
    assert plain is SUITE and plain.larger == ()


def test_a_suite_of_which_nothing_is_left_stays_whole_and_is_named() -> None:
    retired = [entry("abcdef"), entry("efghij", "third")]
    assert [len(form.item_ids) for form in forms_of(SUITE, retired)] == [10, 4]
    assert emptied(retired) == {"first"}
    assert emptied(retired[:1]) == frozenset()
    assert retired[0].sentence == (
        "6 of 10 items of suite 'first' are left out: round 'second' overrides them (by hand)"
    )
    assert entry("abcdefghij").sentence.startswith("all 10 items of suite 'first'")


def test_the_first_items_stay_the_first() -> None:
    """A suite that stops early asks for a beginning, which a larger form's beginning holds."""
    reduced = forms_of(SUITE, [entry("bdf")])[-1]
    order = [SUITE.item_ids[i] for i in in_order("first", SUITE.item_ids)]
    assert [reduced.item_ids[i] for i in in_order("first", reduced.item_ids)] == [
        item for item in order if item not in "bdf"
    ]


def test_a_record_is_read_as_written_and_forgets_a_person(tmp_path: Path) -> None:
    mine = RetiredPart(
        round="first", why="by hand", prompts=("p", "q"), examples=("e",), items=("a",),
        suite_items=10, shown="'my secret'",
    )  # fmt: skip
    other = RetiredPart(round="zeroth", why="by hand", prompts=("r",), shown="'theirs'")
    record = Retirement(round="second", basis="b", parts=(mine, other))
    record.save(path := tmp_path / "retired.json")
    assert Retirement.load(path) == record
    left = record.without({"p"})
    assert (left.parts[0].prompts, left.parts[0].shown, left.parts[0].items) == (("q",), "", ("a",))
    assert left.parts[1] == other
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(StoreError, match="version 2 is newer than 1"):
        Retirement.load(path)
    path.write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        Retirement.load(path)

"""A verdict in words: a table whose signs agree, rates folded, and a loss inside its margin named so."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.config.campaign import GateConfig
from align.gate.case import Case
from align.gate.checks import INSIDE, Check, check
from align.gate.measurement.evaluate import ItemResults
from align.gate.suites.demands import Demands
from align.gate.suites.suite import SuiteRule
from align.gate.summary import HEAD, reason_of, text_table, verdict_rows
from align.gate.verdict import Verdict, decide
from tests.unit.decided import campaign_file, decided, keel

N = 1500


def rule(name: str, target: str | None = None, **demands: Any) -> SuiteRule:
    return SuiteRule(
        name=name, kind="items", role="gate", margin=0.02, budget=0.04, target_of=target, hash=name,
        demands=Demands(**demands),
    )  # fmt: skip


def results(suite: str, snapshot: str, right: range, n: int = N) -> ItemResults:
    return ItemResults(
        suite=suite,
        suite_hash=suite,
        snapshot=snapshot,
        item_ids=tuple(map(str, range(n))),
        values=tuple(float(i in right) for i in range(n)),
        statuses=("scored",) * n,
        finishes=("stop",) * n,
    )


def compared(lost: int, won: int, n: int = N, **changes: Any) -> Check:
    """Parent right on the first items; the candidate loses some of them and wins some others."""
    before = results("s", "parent", range(0, n - won), n)
    after = results("s", "new", range(lost, n), n)
    options: dict[str, Any] = {"role": "retention", "against": "parent", "margin": 0.02} | changes
    return check(rule("s"), after, before, alpha=0.005, **options)


def verdict(general: tuple[int, int], rates: Mapping[str, Any] | None = None) -> Verdict:
    """On a target that gains, on ``general`` with (lost, won) items, and on one that gains a little."""
    rules = [rule("target", "r"), rule("general", **(rates or {})), rule("other", **(rates or {}))]
    lost, won = general
    after = {
        "target": results("target", "new", range(0, 900)),
        "general": results("general", "new", range(lost, N)),
        "other": results("other", "new", range(0, 1100)),
    }
    before = {
        "target": results("target", "parent", range(0, 600)),
        "general": results("general", "parent", range(0, N - won)),
        "other": results("other", "parent", range(0, 1050)),
    }
    case = Case(
        target="r", candidate=after, parent=before, start=before, best=before, suites=tuple(rules),
        gate=GateConfig(alpha=0.005, campaign_rounds=1), accepted_rounds=(),
    )  # fmt: skip
    return decide(case)


# a loss inside the margin


def test_a_loss_inside_the_margin_is_no_regression_in_words() -> None:
    """25 lost and 3 won of 1,500 are 1.5 points, of which 2.0 are allowed."""
    found = compared(25, 3)
    assert found.outcome == "regressed" and found.interval[1] < 0
    assert found.words == INSIDE
    assert re.search(
        rf"margin 2.0: {INSIDE}, about {found.needed} items would show it$", found.sentence
    )


def test_as_many_items_as_it_says_would_show_it() -> None:
    found = compared(25, 3)
    assert found.needed is not None
    factor = found.needed / N
    there = compared(round(25 * factor), round(3 * factor), found.needed)
    assert there.outcome == "passed"
    half = compared(round(25 * factor / 4), round(3 * factor / 4), found.needed // 4)
    assert half.outcome != "passed"


@pytest.mark.parametrize(
    ("lost", "won", "words"),
    [
        (60, 3, "regressed"),  # 3.8 points of 2.0.
        (5, 3, "passed"),
        (45, 30, "too few items"),  # 1.0 point, and the interval holds both 0 and the margin.
    ],
)
def test_every_other_outcome_keeps_its_name(lost: int, won: int, words: str) -> None:
    assert compared(lost, won).words == words


# one table


@pytest.mark.parametrize("general", [(0, 0), (5, 0), (25, 3), (60, 3), (45, 30)])
def test_all_numbers_of_a_row_are_signed_alike(general: tuple[int, int]) -> None:
    """The interval holds the change, and a row passed if and only if its lower end is above the bound."""
    found = verdict(general)
    for row in verdict_rows(found):
        change, low, high, bound = (
            float(re.findall(r"[+-]?\d+\.?\d*", text)[i])
            for text, i in ((row.change, 0), (row.interval, 0), (row.interval, 1), (row.bound, 0))
        )
        assert low <= change <= high
        assert (low > bound) == (row.says == "passed")


def test_what_was_lost_although_it_passed_stands_by_itself() -> None:
    rows = {row.suite: row for row in verdict_rows(verdict((5, 0)))}
    assert [(name, row.group) for name, row in rows.items()] == [
        ("target", "gained"), ("other", "gained"), ("general", "lost, but allowed"),
    ]  # fmt: skip
    assert rows["general"].cells == (
        "lost, but allowed", "general", "its parent, the best so far, the start", "-0.3 points",
        "-1.0 to +0.1", "-2.0 points", "5 / 0 / 1,500", "passed",
    )  # fmt: skip


def test_what_kept_it_out_comes_first_and_is_the_reason() -> None:
    found = verdict((60, 3))
    first = verdict_rows(found)[0]
    assert (first.group, first.suite) == ("kept it out", "general")
    assert reason_of(found) == (
        "general lost 3.8 points against its parent, and at most 2.0 points may be lost"
    )
    assert reason_of(verdict((0, 0))) == ""
    inside = reason_of(verdict((25, 3)))
    assert INSIDE in inside and "items would show it" in inside


def test_shares_of_answers_are_one_row_while_they_pass() -> None:
    rates = {"truncation_margin": 0.05, "failure_margin": 0.05}
    plain, found = verdict((0, 0)), verdict((0, 0), rates)
    assert len(found.checks) == len(plain.checks) + 4
    assert len(verdict_rows(found)) == len(verdict_rows(plain)) + 1
    (row,) = [row for row in verdict_rows(found) if "answers" in row.suite]
    assert row.suite == "answers not cut, or with a score (2 suites)"
    assert row.says.startswith("all 4 comparisons passed")
    failing = [
        replace(c, outcome="regressed") if (c.what, c.suite) == ("truncation", "other") else c
        for c in found.checks
    ]
    names = [row.suite for row in verdict_rows(replace(found, checks=tuple(failing)))]
    assert names[0] == "other: answers that end by themselves"
    assert "answers not cut, or with a score (2 suites)" in names


def test_columns_of_text_are_aligned() -> None:
    lines = list(text_table(HEAD, (row.cells for row in verdict_rows(verdict((5, 0))))))
    starts = {line.index("  ".join(["", cell]).strip()) for line, cell in ((lines[0], "suite"),)}
    assert {line[start - 2 : start] for line in lines for start in starts} == {"  "}


# what stays comparable


def test_a_verdict_in_other_words_is_the_same_verdict() -> None:
    found = verdict((25, 3))
    older = replace(
        found,
        reasons=("said otherwise",),
        checks=tuple(replace(c, sentence="said otherwise", needed=None) for c in found.checks),
    )
    assert older.decides_as(found)
    first, *rest = found.checks
    assert not replace(found, checks=(replace(first, p=0.4), *rest)).decides_as(found)


def test_the_answer_comes_first_wherever_it_is_read(tmp_path: Path) -> None:
    from align.report.records.window import window_of
    from align.report.tables import answer_first

    evidence = decided(tmp_path)
    reason = "general lost 15.0 points against its parent, and at most 5.0 points may be lost"
    lines = answer_first(evidence, window_of(evidence, None))
    production, refused, *_ = [line.plain for line in lines]
    assert production.startswith("Production is round 'first' (")
    assert refused.startswith(f"second was refused: {reason}")
    path = str(campaign_file(tmp_path))
    lines = keel("gate", "explain", path, "second")[1].splitlines()
    assert lines[1].startswith(production[:-1]) and lines[2].startswith(f"Because {reason}")
    told = json.loads(keel("gate", "explain", path, "second", "--json")[1])
    assert told["table"][0]["group"] == "kept it out"

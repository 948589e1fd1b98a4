"""One suite, one comparator: the test, its interval, and one sentence a person can read.

A check says *passed*, *regressed* (*not improved* for the round's own target), or that there are
*too few items* to tell: a small eval must not pass because it is noisy. What follows from it is
`align.gate.gate`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from align.gate.evaluate import ItemResults, paired
from align.gate.sequences import MIN_ITEMS
from align.gate.statistics import (
    items_needed,
    paired_t_noninferiority,
    tango_interval,
    tango_noninferiority,
)
from align.gate.suites import Kind, SuiteRule
from rollouts.errors import RunError
from rollouts.types import SnapshotId

Role = Literal["target", "retention", "shown"]
Against = Literal["parent", "best", "start"]
Test = Literal["tango", "tango_scaled", "paired_t"]
Outcome = Literal["passed", "regressed", "not_improved", "too_few_items"]

MIN_SCORED_ITEMS = 30
"""Fewest items, and fewest that changed, for the mean of scores to be near normal."""

MAX_FAILED_SHARE = 0.01
"""Of a comparator's items: its failures count as worst too, and would make any candidate pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One suite compared with one snapshot. Differences are candidate minus comparator."""

    suite: str
    role: Role
    """``shown`` never decides."""
    against: Against
    also: tuple[Against, ...] = ()
    """Other comparators that are this same snapshot, so that one test answers for all."""
    snapshot: SnapshotId
    """The comparator."""
    test: Test
    n: int
    lost: int
    """Items on which the candidate is worse."""
    won: int
    difference: float
    """Mean over items: shares of items for pass/fail, else units of the metric."""
    interval: tuple[float, float]
    """Of the difference, two-sided, coverage 1 - 2 alpha."""
    margin: float
    """Loss that is still allowed; for a target the gain that must be exceeded."""
    p: float
    """One-sided, of "the loss is at least the margin"; for a target, "the gain is at most it"."""
    alpha: float
    failed: int = 0
    """The candidate's items that failed and count as the worst."""
    needed: int | None = None
    """With too few items: how many would do, at the spread and the loss measured here."""
    outcome: Outcome
    sentence: str


class Comparison(NamedTuple):
    """Numbers of one paired comparison, before anyone judges them."""

    test: Test
    n: int
    lost: int
    won: int
    difference: float
    interval: tuple[float, float]
    p: float
    variance: float
    """Of one item's difference, the discordant share for pass/fail."""
    enough: bool
    """The test's approximation holds at this number of items."""


def check(
    rule: SuiteRule,
    candidate: ItemResults,
    comparator: ItemResults,
    *,
    role: Role,
    against: Against,
    also: Sequence[Against] = (),
    margin: float,
    alpha: float,
) -> Check:
    """Compare two snapshots on one suite.

    Args:
        margin: loss that is still allowed; for ``role="target"`` the gain that must be exceeded.
        alpha: one-sided error of this one look.

    Raises:
        RunError: the two were measured on different items, or the comparator failed on too many.
    """
    _require_sound(rule, comparator, against)
    allowed = -margin if role == "target" else margin
    result = compare(candidate, comparator, rule.kind, allowed, alpha)
    outcome = _outcome(result, role, margin, alpha)
    needed = _needed(result, rule.kind, allowed, alpha) if outcome == "too_few_items" else None
    names = (against, *also)
    return Check(
        suite=rule.name,
        role=role,
        against=against,
        also=tuple(also),
        snapshot=comparator.snapshot,
        test=result.test,
        n=result.n,
        lost=result.lost,
        won=result.won,
        difference=result.difference,
        interval=result.interval,
        margin=margin,
        p=result.p,
        alpha=alpha,
        failed=candidate.failed,
        needed=needed,
        outcome=outcome,
        sentence=_sentence(rule, result, role, names, margin, outcome, needed, candidate.failed),
    )


def compare(
    candidate: ItemResults, comparator: ItemResults, kind: Kind, margin: float, alpha: float
) -> Comparison:
    """Test "the loss is at least ``margin``" with the test that fits the values.

    Pass/fail items: Tango. Scores: paired t, except where fewer than 30 items changed and their
    spread is therefore not known; those are scaled into [-1, 1] and counted as fractions of lost
    and won items, whose variance is never smaller.
    """
    after, before = paired(candidate, comparator)
    differences = [a - b for a, b in zip(after, before, strict=True)]
    n = len(differences)
    lost = sum(d < 0 for d in differences)
    won = sum(d > 0 for d in differences)
    mean = math.fsum(differences) / n
    variance = math.fsum((d - mean) ** 2 for d in differences) / max(1, n - 1)
    if candidate.is_pass_fail and comparator.is_pass_fail:
        p = tango_noninferiority(lost, won, n, margin).p
        interval = tango_interval(lost, won, n, alpha)
        return Comparison("tango", n, lost, won, mean, interval, p, (lost + won) / n, True)
    if kind == "items" and lost + won < MIN_SCORED_ITEMS:
        scale = max(1.0, max(*after, *before) - min(*after, *before), 2.0 * abs(margin))
        down = math.fsum(-d for d in differences if d < 0) / scale
        up = math.fsum(d for d in differences if d > 0) / scale
        p = tango_noninferiority(down, up, n, margin / scale).p
        low, high = tango_interval(down, up, n, alpha)
        interval = (low * scale, high * scale)
        enough = n >= MIN_SCORED_ITEMS
        return Comparison("tango_scaled", n, lost, won, mean, interval, p, variance, enough)
    result = paired_t_noninferiority(differences, margin, alpha=alpha)
    enough = n >= (MIN_ITEMS if kind == "likelihood" else MIN_SCORED_ITEMS)
    return Comparison("paired_t", n, lost, won, mean, result.interval, result.p, variance, enough)


def _require_sound(rule: SuiteRule, comparator: ItemResults, against: Against) -> None:
    if comparator.suite_hash != rule.hash:
        raise RunError(
            f"the results of {against} on suite {rule.name!r} belong to another version of it",
            remedy="evaluate the snapshot on the suite as it is now",
        )
    if comparator.failed > MAX_FAILED_SHARE * len(comparator.values):
        raise RunError(
            f"{comparator.failed} of {len(comparator.values)} items of suite {rule.name!r} failed "
            f"for {against} ({comparator.snapshot}), so nothing can be compared with it",
            cause="the engine or the metric failed while that snapshot was evaluated",
            remedy="repair the metric or the engine and evaluate the snapshot again",
        )


def _outcome(result: Comparison, role: Role, margin: float, alpha: float) -> Outcome:
    if result.enough and result.p <= alpha:
        return "passed"
    if role == "target":
        return "not_improved" if result.difference <= margin else "too_few_items"
    if result.interval[1] < 0.0 or result.difference <= -margin:
        return "regressed"
    return "too_few_items"


def _needed(result: Comparison, kind: Kind, allowed: float, alpha: float) -> int:
    """Items that would show it with power 0.8, were the true difference the measured one."""
    room = allowed + (result.difference if allowed <= 0 else min(0.0, result.difference))
    whole = result.test != "paired_t"
    usual = items_needed(result.variance, room, alpha, pass_fail=whole and allowed > 0)
    fewest = 0 if result.enough else MIN_SCORED_ITEMS if kind == "items" else MIN_ITEMS
    return max(usual, fewest, result.n + 1)


def _sentence(
    rule: SuiteRule,
    result: Comparison,
    role: Role,
    names: Sequence[Against],
    margin: float,
    outcome: Outcome,
    needed: int | None,
    failed: int,
) -> str:
    pass_fail = result.test == "tango"
    unit = "points" if pass_fail else "nats" if rule.kind == "likelihood" else "of reward"

    def amount(value: float) -> str:
        return f"{100 * value:.1f}" if pass_fail else f"{value:.3g}"

    if result.difference == 0:
        change = "no change"
    else:
        verb = "lost" if result.difference < 0 else "gained"
        change = f"{amount(abs(result.difference))} {unit} {verb}"
    whom = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    counts = f"{result.lost} lost, {result.won} won of {result.n}"
    span = f"interval {amount(result.interval[0])} to {amount(result.interval[1])}"
    failures = f", {failed} failed" if failed else ""
    demand = "must gain more than" if role == "target" else "margin"
    ending = outcome.replace("_", " ")
    if needed is not None:
        ending += f" to tell, about {needed} needed"
    return (
        f"{rule.name}: {change} against {whom} ({counts}{failures}; {span}), "
        f"{demand} {amount(margin)}: {ending}"
    )

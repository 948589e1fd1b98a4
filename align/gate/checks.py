"""One suite, one comparator: the test, its interval, and one sentence a person can read.

A check says *passed*, *regressed* (*not improved* for the round's own target), that there are *too
few items* to tell, or that it is *void*: a small eval must not pass because it is noisy, nor a broken
one because it failed. What follows from it is `align.gate.gate`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from align.demands_config import Family
from align.gate.evaluate import ItemResults, paired
from align.gate.sequences import MIN_ITEMS
from align.gate.statistics import (
    items_needed,
    paired_t_noninferiority,
    tango_interval,
    tango_noninferiority,
)
from align.gate.suite import Kind, SuiteRule
from rollouts.errors import RunError
from rollouts.types import SnapshotId

Role = Literal["target", "retention", "shown"]
Against = Literal["parent", "best", "start", "last opening"]
What = Literal["value", "truncation", "failure", "zero_tolerance"]
Test = Literal["tango", "tango_scaled", "paired_t", "exact"]
Outcome = Literal["passed", "regressed", "not_improved", "too_few_items", "void"]

MIN_SCORED_ITEMS = 30
"""Fewest items, clusters where items have them, and fewest items that changed, for the mean of scores to
be near normal."""

MAX_FAILED_SHARE = 0.01
"""Of items. A comparator's failures count as worst too, and would make any candidate pass; with so many
of its own a candidate was not measured at all."""


INSIDE = "worse, by less than the margin; not shown to be within it"
"""The outcome of a loss that is no accident, and that may or may not be allowed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One suite compared with one snapshot. Differences are candidate minus comparator."""

    suite: str
    family: Family = "general"
    what: What = "value"
    """What is compared: the mean, the share of answers not cut, that of answers with a score, or the
    items that must not fail."""
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
    clusters: int | None = None
    """Independent clusters that the items come in; None: every item counts by itself."""
    items: tuple[str, ...] = ()
    """Of a list that must not fail: the items that did."""
    needed: int | None = None
    """Items that would do, at the spread and the loss measured here; None unless there are too few, or the
    loss is inside the margin."""
    outcome: Outcome
    sentence: str

    @property
    def allowed(self) -> float:
        """The loss that the null hypothesis sets: below 0 where a gain is demanded."""
        return -self.margin if self.role == "target" else self.margin

    @property
    def is_inside(self) -> bool:
        """True if the candidate is worse, and by less than is allowed: more items might show that."""
        worse = self.outcome == "regressed" and self.what != "zero_tolerance"
        return worse and self.difference > -self.margin

    @property
    def words(self) -> str:
        """The outcome, as a person says it."""
        return INSIDE if self.is_inside else self.outcome.replace("_", " ")

    def amount(self, value: float) -> str:
        """A difference as a person reads it: points for pass/fail, else units of the metric."""
        return f"{100 * value:.1f}" if self.test in ("tango", "exact") else f"{value:.3g}"


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
    """Of one item's difference, the discordant share for pass/fail; larger where items of a cluster are
    alike."""
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
    what: What = "value",
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
    void = what == "value" and candidate.failed > MAX_FAILED_SHARE * len(candidate.values)
    outcome = "void" if void else _outcome(result, role, margin, alpha)
    found = Check(
        suite=rule.name,
        family=rule.demands.family,
        what=what,
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
        clusters=len(set(candidate.clusters)) or None,
        outcome=outcome,
        sentence="",
    )
    if outcome == "too_few_items" or found.is_inside:
        found = replace(found, needed=_needed(result, rule.kind, allowed, alpha))
    return replace(found, sentence=_sentence(found, rule.kind))


def compare(
    candidate: ItemResults, comparator: ItemResults, kind: Kind, margin: float, alpha: float
) -> Comparison:
    """Test "the loss is at least ``margin``" with the test that fits the values.

    Pass/fail items: Tango. Scores: paired t, except where fewer than 30 items changed and their
    spread is therefore not known; those are scaled into [-1, 1] and counted as fractions of lost
    and won items, whose variance is never smaller. Items that come in clusters must pass the
    cluster-robust t test as well (Miller, arXiv 2411.00640, section 2.2): neither test alone knows both
    few changes and likeness.
    """
    after, before = paired(candidate, comparator)
    differences = [a - b for a, b in zip(after, before, strict=True)]
    if candidate.is_pass_fail and comparator.is_pass_fail:
        found = _counts(differences, margin, alpha)
    else:
        width = max(*after, *before) - min(*after, *before)
        found = _scores(differences, kind, width, margin, alpha)
    return _robust(found, differences, candidate.clusters, margin, alpha)


def _counts(differences: Sequence[float], margin: float, alpha: float) -> Comparison:
    n, lost, won, mean, _ = _moments(differences)
    return Comparison(
        test="tango",
        n=n,
        lost=lost,
        won=won,
        difference=mean,
        interval=tango_interval(lost, won, n, alpha),
        p=tango_noninferiority(lost, won, n, margin).p,
        variance=(lost + won) / n,
        enough=True,
    )


def _scores(
    differences: Sequence[float], kind: Kind, width: float, margin: float, alpha: float
) -> Comparison:
    """``width``: of the range of all values seen."""
    n, lost, won, mean, variance = _moments(differences)
    if kind == "items" and lost + won < MIN_SCORED_ITEMS:
        scale = max(1.0, width, 2.0 * abs(margin))
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


def _robust(
    found: Comparison,
    differences: Sequence[float],
    clusters: Sequence[str],
    margin: float,
    alpha: float,
) -> Comparison:
    """The larger p and the wider interval of the test at hand and of the cluster-robust one."""
    if not clusters:
        return found
    groups = len(set(clusters))
    if groups < 2:
        return found._replace(enough=False)
    robust = paired_t_noninferiority(differences, margin, clusters, alpha)
    (low, high), (robust_low, robust_high) = found.interval, robust.interval
    return found._replace(
        p=max(found.p, robust.p),
        interval=(min(low, robust_low), max(high, robust_high)),
        variance=max(found.variance, found.n * robust.error**2),
        enough=found.enough and groups >= MIN_SCORED_ITEMS,
    )


def _moments(differences: Sequence[float]) -> tuple[int, int, int, float, float]:
    """Number, lost, won, mean and variance."""
    n = len(differences)
    mean = math.fsum(differences) / n
    variance = math.fsum((d - mean) ** 2 for d in differences) / max(1, n - 1)
    return n, sum(d < 0 for d in differences), sum(d > 0 for d in differences), mean, variance


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


SUBJECTS = {
    "value": "",
    "truncation": " of answers that end by themselves",
    "failure": " of answers with a score",
}
"""What is lost or gained."""


def _sentence(found: Check, kind: Kind) -> str:
    unit = "points" if found.test == "tango" else "nats" if kind == "likelihood" else "of reward"
    if found.difference == 0:
        change = f"no change{SUBJECTS[found.what]}"
    else:
        verb = "lost" if found.difference < 0 else "gained"
        change = f"{found.amount(abs(found.difference))} {unit}{SUBJECTS[found.what]} {verb}"
    names = (found.against, *found.also)
    whom = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    counts = f"{found.lost} lost, {found.won} won of {found.n}"
    if found.clusters is not None:
        counts += f" in {found.clusters} clusters"
    if found.failed:
        counts += f", {found.failed} failed"
    span = f"interval {found.amount(found.interval[0])} to {found.amount(found.interval[1])}"
    demand = "must gain more than" if found.role == "target" else "margin"
    ending = found.words
    if found.is_inside:
        ending += f", about {found.needed} items would show it"
    elif found.needed is not None:
        ending += f" to tell, about {found.needed} needed"
    if found.outcome == "void":
        ending += f", more than {100 * MAX_FAILED_SHARE:.0f}% failed"
    return (
        f"{found.suite}: {change} against {whom} ({counts}; {span}), "
        f"{demand} {found.amount(found.margin)}: {ending}"
    )

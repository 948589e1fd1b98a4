"""One suite, one comparator: the test, its interval, and one sentence a person can read.

A check says *passed*, *regressed* (*not improved* for the round's own target), that there are *too
few items* to tell, or that it is *void*: a small eval must not pass because it is noisy, nor a broken
one because it failed. What follows from it is `align.gate.verdict`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Required, TypedDict, Unpack

from align.config.gate import Family
from align.gate.measurement.evaluate import ItemResults
from align.gate.statistics.comparison import Comparison, Test, compare
from align.gate.statistics.rules import CURRENT_RULE, compare_of
from align.gate.statistics.significance import items_needed
from align.gate.suites.kinds import score_scale
from align.gate.suites.looks import first
from align.gate.suites.suite import SuiteRule
from rollouts.errors import RunError
from rollouts.types import SnapshotId

__all__ = ["Against", "Check", "Comparison", "Outcome", "Role", "Test", "What", "check", "compare"]

Role = Literal["target", "retention", "shown"]
Against = Literal["parent", "best", "start", "last opening"]
What = Literal["value", "truncation", "failure", "zero_tolerance"]
Items = Mapping[SnapshotId, int]
"""Numbers of first items of a suite that may stop early, by comparator."""
Outcome = Literal["passed", "regressed", "not_improved", "too_few_items", "void"]

IN_POINTS: tuple[Test, ...] = ("tango", "betting", "exact")
"""Tests of shares of items, which a person reads in points."""
MAX_FAILED_SHARE = 0.01
"""Largest share of items that a snapshot may fail on. A comparator's failures count as worst too, and would
make any candidate pass; a candidate with more failures was not measured at all."""


INSIDE = "worse, by less than the margin; not shown to be within it"
"""The outcome of a loss that is no accident, and that may or may not be allowed."""


class CheckOptions(TypedDict, total=False):
    """Options that all checks of one decision on a suite share."""

    alpha: Required[float]
    """One-sided error of this one look."""
    decided_by: int
    """Number of the rule in `align.gate.statistics.rules`."""
    items: Items | None
    """Number of first items that are compared, by comparator, of a suite that stopped early."""
    with_interval: bool
    """False leaves out what a look at a suite that may stop early does not need."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One suite compared with one snapshot. Differences are candidate minus comparator."""

    suite: str
    family: Family = "general"
    what: What = "value"
    """Quantity that is compared: the mean, the share of answers not cut, that of answers with a score, or
    the items that must not fail."""
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
    """Two-sided interval of the difference, with coverage 1 - 2 alpha."""
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
    """Items of a list that must not fail which failed."""
    needed: int | None = None
    """Items that would do, at the spread and the loss measured here; None unless there are too few, or the
    loss is inside the margin."""
    open: bool = False
    """True while items of the suite that are not measured yet may still make it pass."""
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
        """Format a difference for a person: points for pass/fail, else units of the metric."""
        return f"{100 * value:.1f}" if self.test in IN_POINTS else f"{value:.3g}"


def check(
    rule: SuiteRule,
    candidate: ItemResults,
    comparator: ItemResults,
    *,
    role: Role,
    against: Against,
    also: Sequence[Against] = (),
    margin: float,
    what: What = "value",
    **options: Unpack[CheckOptions],
) -> Check:
    """Compare two snapshots on one suite.

    Args:
        margin: loss that is still allowed; for ``role="target"`` the gain that must be exceeded.

    Raises:
        RunError: the two were measured on different items, or the comparator failed on too many.
    """
    if rule.early is not None:
        count = (options.get("items") or {}).get(comparator.snapshot, len(candidate.values))
        candidate, comparator = first(candidate, count), first(comparator, count)
    _require_sound(rule, comparator, against)
    allowed, alpha = -margin if role == "target" else margin, options["alpha"]
    decided_by = options.get("decided_by", CURRENT_RULE)
    compare_items = compare_of(rule, decided_by, with_interval=options.get("with_interval", True))
    result = compare_items(candidate, comparator, score_scale(rule), allowed, alpha)
    void = what == "value" and candidate.failed > MAX_FAILED_SHARE * len(candidate.values)
    outcome = "void" if void else _outcome(result, role, margin, alpha)
    checked = Check(
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
        open=result.open or (void and rule.early is not None and result.n < rule.early.items),
        outcome=outcome,
        sentence="",
    )
    if outcome == "too_few_items" or checked.is_inside:
        checked = replace(checked, needed=_needed(result, allowed, alpha))
    return replace(checked, sentence=_sentence(checked, score_scale(rule).unit))


def distinct(
    comparators: Mapping[Against, ItemResults],
) -> list[tuple[ItemResults, tuple[Against, ...]]]:
    """Return every snapshot once, with the parts that it plays."""
    names: dict[SnapshotId, list[Against]] = {}
    for against, results in comparators.items():
        names.setdefault(results.snapshot, []).append(against)
    return [(comparators[parts[0]], tuple(parts)) for parts in names.values()]


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


def _needed(result: Comparison, allowed: float, alpha: float) -> int:
    """Return the number of items that would show it with power 0.8, were the true difference the measured
    one.

    Stored verdicts hold this number, so it is by the variance of the difference alone, as it ever was.
    """
    room = allowed + (result.difference if allowed <= 0 else min(0.0, result.difference))
    usual = items_needed(result.variance, room, alpha, pass_fail=False, reach=result.reach)
    if allowed > 0 and result.test in ("tango", "betting", "tango_scaled"):
        usual = max(usual, items_needed(0.0, room, alpha))
    return max(usual, 0 if result.enough else result.fewest, result.n + 1)


SUBJECTS = {
    "value": "",
    "truncation": " of answers that end by themselves",
    "failure": " of answers with a score",
}
"""Words for the quantity that is lost or gained."""


def _sentence(check: Check, value_unit: str) -> str:
    unit = "points" if check.test in IN_POINTS else value_unit or "of reward"
    if check.difference == 0:
        change = f"no change{SUBJECTS[check.what]}"
    else:
        verb = "lost" if check.difference < 0 else "gained"
        change = f"{check.amount(abs(check.difference))} {unit}{SUBJECTS[check.what]} {verb}"
    names = (check.against, *check.also)
    whom = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    counts = f"{check.lost} lost, {check.won} won of {check.n}"
    if check.clusters is not None:
        counts += f" in {check.clusters} clusters"
    if check.failed:
        counts += f", {check.failed} failed"
    span = f"interval {check.amount(check.interval[0])} to {check.amount(check.interval[1])}"
    demand = "must gain more than" if check.role == "target" else "margin"
    ending = check.words
    if check.is_inside:
        ending += f", about {check.needed} items would show it"
    elif check.needed is not None:
        ending += f" to tell, about {check.needed} needed"
    if check.outcome == "void":
        ending += f", more than {100 * MAX_FAILED_SHARE:.0f}% failed"
    return (
        f"{check.suite}: {change} against {whom} ({counts}; {span}), "
        f"{demand} {check.amount(check.margin)}: {ending}"
    )

"""Checks besides the mean: answers that are cut or cannot be scored, and items that must never fail."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Unpack

from align.gate.checks import Against, Check, CheckOptions, What, check, distinct
from align.gate.measurement.evaluate import ItemResults, paired
from align.gate.statistics.significance import exact_interval
from align.gate.suites.scale import UNIT
from align.gate.suites.suite import SuiteRule

PASSES = 1.0
"""Value from which on an item counts as passed."""


def rate_checks(
    rule: SuiteRule,
    candidate: ItemResults,
    comparators: Mapping[Against, ItemResults],
    **options: Unpack[CheckOptions],
) -> Iterator[Check]:
    """Test whether answers are cut, or left without a score, more often than a comparator's.

    An answer that is cut or that no metric can read says little about the ability it was asked for, and a
    metric may still like it; so these shares are held to margins of their own, by Tango's test: against the
    parent to a round's, against the start to the campaign's, so that small rises cannot add up.
    """
    demands = rule.demands
    allowed: tuple[tuple[What, dict[Against, float | None]], ...] = (
        ("truncation", {"parent": demands.truncation_margin, "start": demands.truncation_budget}),
        ("failure", {"parent": demands.failure_margin, "start": demands.failure_budget}),
    )
    for what, margins in allowed:
        limits = {name: limit for name, limit in margins.items() if limit is not None}
        compared = {name: comparators[name] for name in limits if name in comparators}
        for comparator, names in distinct(compared):
            yield check(
                replace(rule, value_range=UNIT),
                _usable(candidate, what),
                _usable(comparator, what),
                role="retention",
                against=names[0],
                also=names[1:],
                margin=min(limits[name] for name in names),
                what=what,
                **options,
            )


def tolerance_checks(
    rule: SuiteRule,
    candidate: ItemResults,
    comparators: Mapping[Against, ItemResults],
    alpha: float,
) -> Iterator[Check]:
    """Check, per snapshot but the best so far, if an item on the list fails that passed under it."""
    if not rule.demands.zero_tolerance:
        return
    fixed: dict[Against, ItemResults] = {
        name: results for name, results in comparators.items() if name != "best"
    }
    for results, names in distinct(fixed):
        yield _tolerance(rule, candidate, results, names, alpha)


def _tolerance(
    rule: SuiteRule,
    candidate: ItemResults,
    comparator: ItemResults,
    names: tuple[Against, ...],
    alpha: float,
) -> Check:
    """Check a list without a test, since one item is enough; the bound is what such a list can promise.

    The rate is that of items lost among those that passed before; its upper bound is Clopper and
    Pearson's, wrong with a chance of at most ``alpha``.
    """
    after, before = paired(candidate, comparator)
    listed = rule.demands.zero_tolerance
    guarded = [
        (item, now >= PASSES)
        for item, now, was in zip(candidate.item_ids, after, before, strict=True)
        if was >= PASSES and (listed == "all" or item in listed)
    ]
    lost = tuple(item for item, passes in guarded if not passes)
    n = len(guarded)
    low, high = exact_interval(len(lost), n, alpha) if n else (0.0, 1.0)
    check = Check(
        suite=rule.name,
        family=rule.demands.family,
        what="zero_tolerance",
        role="retention",
        against=names[0],
        also=names[1:],
        snapshot=comparator.snapshot,
        test="exact",
        n=n,
        lost=len(lost),
        won=0,
        difference=-len(lost) / n if n else 0.0,
        interval=(-high, -low),
        margin=0.0,
        p=float(bool(lost)),
        alpha=alpha,
        failed=candidate.failed,
        items=lost,
        outcome="regressed" if lost else "passed",
        sentence="",
    )
    return replace(check, sentence=_sentence(check, high))


SHOWN = 5
"""Lost items that a sentence names; the check has them all."""


def _sentence(check: Check, bound: float) -> str:
    whom = " and ".join((check.against, *check.also))
    names = ", ".join(repr(item) for item in check.items[:SHOWN])
    more = f" and {len(check.items) - SHOWN} more" if len(check.items) > SHOWN else ""
    which = f" ({names}{more})" if names else ""
    return (
        f"{check.suite}: of {check.n} items that must not fail and passed under {whom}, {check.lost} "
        f"fail{which}; at most {100 * bound:.1f}% of such items are lost: {check.outcome}"
    )


def _usable(results: ItemResults, what: What) -> ItemResults:
    """Return 1 for an answer that ended by itself, or has a score; a failure of the engine is both."""
    good = (
        [finish == "stop" for finish in results.finishes]
        if what == "truncation"
        else [status == "scored" for status in results.statuses]
    )
    return replace(results, values=tuple(map(float, good)), counts=(), formula=None)

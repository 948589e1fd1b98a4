"""Comparison of two snapshots on the items measured so far, by a bet that may be looked at any time.

It is for suites whose values lie in a known range: pass/fail items, scores with a range, pairs. What makes
a suite one is `may_stop`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from align.config.gate import Stopping
from align.gate.measurement.results import ItemResults, paired
from align.gate.statistics.betting import is_hopeless, lower_end, wager
from align.gate.statistics.comparison import UNBOUNDED, Comparison, moments
from align.gate.suites.looks import LOOKS, Early, early_of
from align.gate.suites.scale import UNIT, ScoreScale
from align.gate.suites.suite import Suite


def may_stop(suite: Suite) -> bool:
    """Tell if a suite can be decided before all of its items are measured.

    A text's losses have no range. Lists of items that must not fail are read whole, and so are harness
    tasks, items that rotate, win rates and suites that decide nothing.
    """
    whole = suite.whole or suite.rotates or suite.demands.zero_tolerance
    return suite.known_range is not None and not whole and suite.role == "gate"


def stopping(suite: Suite, max_looks: int = LOOKS) -> Suite:
    """Return the suite with leave to stop early, if it can."""
    if not may_stop(suite):
        return suite
    return replace(suite, early=early_of(suite.item_ids, suite.item_clusters, max_looks))


STOPPING: Mapping[Stopping, Callable[[Suite, int], Suite]] = {
    "fixed": lambda suite, max_looks: suite,
    "sequential": stopping,
}
"""Ways to measure a suite, as ``gate.stopping`` names them."""


def compare_by_bets(
    candidate: ItemResults,
    comparator: ItemResults,
    scale: ScoreScale,
    margin: float,
    alpha: float,
    *,
    early: Early,
    with_interval: bool = True,
) -> Comparison:
    """Test "the loss is at least ``margin``" on the first items of a suite, in the order of measuring.

    Args:
        scale: facts about the values, their range among them; without one it is [0, 1].
        early: size of the whole suite.
        with_interval: False leaves the interval unbounded; it takes 20 times as long as the test.
    """
    after, before = paired(candidate, comparator)
    differences = [a - b for a, b in zip(after, before, strict=True)]
    # An item without a value counts as 0, which the range need not include.
    low, high = scale.range or UNIT
    reach = max(high, 0.0) - min(low, 0.0)
    totals, sizes = _units(differences, candidate.clusters)
    bet = partial(wager, sizes=sizes, reach=reach, units=early.units, largest=early.largest)
    lower = partial(lower_end, sizes=sizes, reach=reach, units=early.units, largest=early.largest)
    state = bet(totals, margin, alpha)
    n, lost, won, mean, variance = moments(differences)
    whole = candidate.is_pass_fail and comparator.is_pass_fail
    left = early.units - len(totals)
    size = n / len(totals)
    if not whole and len(totals) not in (1, n):
        # The variance of single items that would leave the mean as uncertain as its clusters do.
        variance = max(variance, math.fsum(total * total for total in totals) / n)
    over = state.lacking > 0.0 and is_hopeless(state, margin * size, left)
    return Comparison(
        test="betting" if whole else "betting_scores",
        n=n,
        lost=lost,
        won=won,
        difference=mean,
        interval=(lower(totals, alpha), -lower([-t for t in totals], alpha))
        if with_interval
        else UNBOUNDED,
        p=state.p,
        variance=(lost + won) / n if whole else variance,
        reach=reach,
        open=state.lacking > 0.0 and left > 0 and not over,
    )


def _units(
    differences: Sequence[float], clusters: Sequence[str]
) -> tuple[list[float], list[int] | None]:
    """Return the sum of every cluster's differences in the order they come in, and its items."""
    if not clusters:
        return list(differences), None
    families: dict[str, list[float]] = {}
    for label, difference in zip(clusters, differences, strict=True):
        families.setdefault(label, []).append(difference)
    return [math.fsum(members) for members in families.values()], [
        len(members) for members in families.values()
    ]

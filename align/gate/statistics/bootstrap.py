"""Paired bootstrap over items, for a value that is no mean: F1, BLEU, and others of pooled counts.

The items of both snapshots are drawn again together, and the value of each draw's sum of counts is computed
for both. Weights are those of Rubin's Bayesian bootstrap, which leaves no item out. An ordinary bootstrap
knows no damage that hit none of the items, and passes candidates too often where losses are rare or skewed.
So one unit more is drawn, which the candidate lost whole while the comparator has it: for a value that is a
mean this is Gaffke's test (`align.gate.statistics.worst_case`). For other values no proof of the level is
known; ``python -m benchmarks.corpus_levels`` looks for counts and losses by which it is exceeded.

Draws follow from a seed that is written here and from numpy's `RandomState`, whose stream is frozen: the
same counts give the same p value on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from align.gate.statistics.worst_case import rounded
from rewards.library.corpus.formulas import Array, Formula

SEED = 20_160_229
DRAWS = 10_000
"""Fewest draws of one comparison."""
BEYOND_ALPHA = 50
"""Draws that are expected to fall beyond a level, at least."""
MOST_DRAWS = 200_000
CHUNK = 2**20
"""Largest number of weights in memory at a time."""


class Resampled(NamedTuple):
    """Outcome of a paired bootstrap of a difference between two values."""

    difference: float
    p: float
    """Chance of "the difference is at most ``-margin``"."""
    interval: tuple[float, float]
    """Differences that neither one-sided test at level alpha rejects."""
    variance: float
    """Variance of one unit's difference for which a mean would be as uncertain, by the jackknife."""
    reach: float
    """Size of the difference of the unit that was added, as one of the units of a mean."""


def paired_bootstrap(
    candidate_NK: Array,
    comparator_NK: Array,
    formula: Formula,
    margin: float,
    alpha: float,
    draws: int | None = None,
) -> Resampled:
    """Test that the candidate's value is below the comparator's by at least ``margin``.

    Args:
        candidate_NK, comparator_NK: counts of independent units, paired; at least two.
        alpha: level, and each side's error of the interval.
        draws: number of draws; None: as many as the level asks for.
    """
    # The order of items decides which weight each gets, and must not change a verdict.
    order = np.lexsort(np.concatenate([comparator_NK, candidate_NK], axis=1).T[::-1])
    after_NK, before_NK = candidate_NK[order], comparator_NK[order]
    difference = formula.value(after_NK) - formula.value(before_NK)
    lost, won = formula.lost_unit(after_NK, before_NK)
    below = np.concatenate([lost, won])
    gained, missed = formula.lost_unit(before_NK, after_NK)[::-1]
    above = np.concatenate([gained, missed])
    units_NK = np.concatenate([after_NK, before_NK], axis=1)
    if draws is None:
        draws = min(MOST_DRAWS, max(DRAWS, math.ceil(BEYOND_ALPHA / alpha)))
    low_R, high_R = _drawn(units_NK, below, above, formula, draws)
    low_R.sort()
    high_R.sort()
    # A count of draws that are as low has the level of a rank among them and the truth.
    p = (1 + int(np.searchsorted(low_R, -margin, side="right"))) / (draws + 1)
    edge = max(0, math.floor(alpha * (draws + 1)) - 1)
    total_K = units_NK.sum(axis=0)
    worse = _differences((total_K + below)[None, :], formula)[0]
    return Resampled(
        difference=difference,
        p=p,
        interval=(rounded(float(low_R[edge])), rounded(float(high_R[draws - 1 - edge]))),
        variance=rounded(_jackknife(units_NK, formula)),
        reach=rounded(max(0.0, (len(units_NK) + 1) * (difference - float(worse)))),
    )


def pooled(counts_NK: Array, clusters: Sequence[Hashable]) -> Array:
    """Return the sum of counts over each cluster, in the order in which clusters first come."""
    places: dict[Hashable, int] = {}
    rows = [places.setdefault(label, len(places)) for label in clusters]
    sums = np.zeros((len(places), counts_NK.shape[1]))
    np.add.at(sums, rows, counts_NK)
    return sums


def value_variance(candidate_NK: Array, comparator_NK: Array, formula: Formula) -> float:
    """Return `Resampled.variance` without a bootstrap."""
    return _jackknife(np.concatenate([candidate_NK, comparator_NK], axis=1), formula)


def _drawn(
    units_NK: Array, below: Array, above: Array, formula: Formula, draws: int
) -> tuple[Array, Array]:
    """Return the differences of all draws with a unit that was lost, and with one that was won."""
    stream, n = np.random.RandomState(SEED), len(units_NK)
    lows, highs = [], []
    size = max(1, CHUNK // (n + 1))
    for start in range(0, draws, size):
        weights_RN = stream.standard_exponential((min(size, draws - start), n + 1))
        weights_RN *= (n + 1) / weights_RN.sum(axis=1, keepdims=True)
        sums_RK = weights_RN[:, :n] @ units_NK
        added_R1 = weights_RN[:, n:]
        lows.append(_differences(sums_RK + added_R1 * below, formula))
        highs.append(_differences(sums_RK + added_R1 * above, formula))
    return np.concatenate(lows), np.concatenate(highs)


def _differences(sums_RK: Array, formula: Formula) -> Array:
    """Return the candidate's value minus the comparator's, of sums over both side by side."""
    width = sums_RK.shape[1] // 2
    difference: Array = formula.values(sums_RK[:, :width]) - formula.values(sums_RK[:, width:])
    return difference


def _jackknife(units_NK: Array, formula: Formula) -> float:
    n = len(units_NK)
    without_N = _differences(units_NK.sum(axis=0) - units_NK, formula)
    return float((n - 1) * ((without_N - without_N.mean()) ** 2).sum()) if n > 1 else 0.0

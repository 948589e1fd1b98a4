"""Paired t tests of scores and clusters: the first rule, kept for verdicts that were drawn by it.

A t test takes the mean of few or skewed losses for normal, and accepts too often: with one half point among
1,500 pass/fail items 1.2% of the time at a nominal .5%, with eight windows of which one in 20 is damaged
66%. No new verdict is drawn by it (`align.gate.statistics.rules`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from align.gate.measurement.results import ItemResults, paired
from align.gate.statistics.comparison import MIN_SCORED_ITEMS, Comparison, counts, moments
from align.gate.statistics.significance import (
    paired_t_noninferiority,
    tango_interval,
    tango_noninferiority,
)
from align.gate.suites.scale import ScoreScale
from align.gate.suites.sequences import MIN_ITEMS


def compare_by_t(
    candidate: ItemResults,
    comparator: ItemResults,
    scale: ScoreScale,
    margin: float,
    alpha: float,
) -> Comparison:
    """Test "the loss is at least ``margin``": pass/fail by Tango, scores and clusters by t.

    Where fewer than 30 items changed, scores are scaled into [-1, 1] and counted as fractions of lost and
    won items. The range of ``scale`` was not looked at.
    """
    after, before = paired(candidate, comparator)
    differences = [a - b for a, b in zip(after, before, strict=True)]
    if candidate.is_pass_fail and comparator.is_pass_fail:
        result = counts(differences, margin, alpha)
    else:
        width = max(*after, *before) - min(*after, *before)
        result = _scores(differences, scale, width, margin, alpha)
    return _robust(result, differences, candidate.clusters, margin, alpha)


def _scores(
    differences: Sequence[float], scale: ScoreScale, width: float, margin: float, alpha: float
) -> Comparison:
    """Compare scores by a paired t test, or by Tango's where few of them changed.

    Args:
        width: width of the range of all values seen.
    """
    n, lost, won, mean, variance = moments(differences)
    if scale.of_metric and lost + won < MIN_SCORED_ITEMS:
        span = max(1.0, width, 2.0 * abs(margin))
        down = math.fsum(-d for d in differences if d < 0) / span
        up = math.fsum(d for d in differences if d > 0) / span
        p = tango_noninferiority(down, up, n, margin / span).p
        low, high = tango_interval(down, up, n, alpha)
        interval = (low * span, high * span)
        few = MIN_SCORED_ITEMS
        return Comparison("tango_scaled", n, lost, won, mean, interval, p, variance, few)
    result = paired_t_noninferiority(differences, margin, alpha=alpha)
    few = MIN_SCORED_ITEMS if scale.bounded else MIN_ITEMS
    return Comparison("paired_t", n, lost, won, mean, result.interval, result.p, variance, few)


def _robust(
    result: Comparison,
    differences: Sequence[float],
    clusters: Sequence[str],
    margin: float,
    alpha: float,
) -> Comparison:
    """Take the larger p and the wider interval of a test and its cluster-robust form."""
    if not clusters:
        return result
    groups = len(set(clusters))
    if groups < 2:
        return result._replace(fewest=max(MIN_SCORED_ITEMS, result.n + 1))
    robust = paired_t_noninferiority(differences, margin, clusters, alpha)
    (low, high), (robust_low, robust_high) = result.interval, robust.interval
    return result._replace(
        p=max(result.p, robust.p),
        interval=(min(low, robust_low), max(high, robust_high)),
        variance=max(result.variance, result.n * robust.error**2),
        fewest=result.fewest if groups >= MIN_SCORED_ITEMS else max(MIN_SCORED_ITEMS, result.n + 1),
    )

"""One paired comparison in numbers: what was lost and won, and the p value of "worse by the margin".

    pass/fail items      Tango's score test
    scores               Gaffke's test within the range of the metric; where that is not known, within
                         that of the values seen, which is taken to be at least 1
    losses of windows    the same, beyond the worst window seen, with windows enough to see rare damage
    corpus metrics       a paired bootstrap of the value of all items' counts
    items in clusters    that of the items and one of the clusters; both must pass

Which items and which margins are compared, and what follows, is `align.gate.checks`' business.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

from align.gate.measurement.results import ItemResults, paired, paired_counts
from align.gate.statistics.bootstrap import paired_bootstrap, pooled, value_variance
from align.gate.statistics.significance import (
    clustered_mean,
    tango_interval,
    tango_noninferiority,
)
from align.gate.statistics.worst_case import BEYOND, fewest_units, worst_case_interval, worst_case_p
from align.gate.suites.scale import ScoreScale
from align.gate.suites.sequences import MIN_ITEMS
from rewards.library.corpus.formulas import Formula

Test = Literal[
    "tango", "bounded", "unbounded", "exact", "betting", "betting_scores", "tango_scaled", "paired_t",
    "bootstrap",
]  # fmt: skip
"""The two of betting are those of suites that may stop early, pass/fail or not. ``tango_scaled`` and
``paired_t`` decided before `align.gate.statistics.rules` knew a second rule."""

MIN_SCORED_ITEMS = 30
"""Fewest items of scores, and fewest clusters of any items."""
USUAL_WIDTH = 1.0
"""Range of scores that is assumed at least, where nobody stated it."""
UNBOUNDED = (-math.inf, math.inf)


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
    """Variance of one item's difference, the discordant share for pass/fail; larger where items of a
    cluster are alike."""
    fewest: int = 1
    """Items below which the test says nothing, however they came out."""
    reach: float = 0.0
    """Size of the worst difference that the test reckons with, seen or not; 0: it reckons with none."""
    open: bool = False
    """True while items of the suite that are not measured yet may still make it pass."""

    @property
    def enough(self) -> bool:
        """The test holds at this number of items."""
        return self.n >= self.fewest


def compare(
    candidate: ItemResults,
    comparator: ItemResults,
    scale: ScoreScale,
    margin: float,
    alpha: float,
    *,
    with_interval: bool = True,
) -> Comparison:
    """Test "the loss is at least ``margin``" with the test that fits the values.

    Args:
        scale: facts about the values, which choose the test.
        with_interval: False leaves the interval unbounded where it takes ten times as long as the test.
    """
    if candidate.formula is not None:
        return _corpora(candidate, comparator, candidate.formula, margin, alpha)
    after, before = paired(candidate, comparator)
    differences = [a - b for a, b in zip(after, before, strict=True)]
    width = max(*after, *before) - min(*after, *before)
    if candidate.is_pass_fail and comparator.is_pass_fail:
        result, reach = counts(differences, margin, alpha), 1.0
    elif not scale.bounded:
        result, reach = _losses(differences, margin, alpha, with_interval), math.inf
    else:
        stated = scale.range[1] - scale.range[0] if scale.range else USUAL_WIDTH
        # An item without a value counts as 0, which the range need not include.
        reach = max(stated, width)
        result = _scores(differences, margin, alpha, reach, with_interval)
    return of_clusters(result, differences, candidate.clusters, margin, alpha, reach, with_interval)


def counts(differences: Sequence[float], margin: float, alpha: float) -> Comparison:
    """Compare pass/fail items by how many were lost and won."""
    n, lost, won, mean, _ = moments(differences)
    return Comparison(
        test="tango",
        n=n,
        lost=lost,
        won=won,
        difference=mean,
        interval=tango_interval(lost, won, n, alpha),
        p=tango_noninferiority(lost, won, n, margin).p,
        variance=(lost + won) / n,
    )


def moments(differences: Sequence[float]) -> tuple[int, int, int, float, float]:
    """Number, lost, won, mean and variance."""
    n = len(differences)
    mean = math.fsum(differences) / n
    variance = math.fsum((d - mean) ** 2 for d in differences) / max(1, n - 1)
    return n, sum(d < 0 for d in differences), sum(d > 0 for d in differences), mean, variance


def variance_of(candidate: ItemResults, comparator: ItemResults) -> float:
    """Return the variance of one item's difference, as in `Comparison` and without a test."""
    if candidate.formula is not None:
        after_NK, before_NK = paired_counts(candidate, comparator)
        return value_variance(after_NK, before_NK, candidate.formula)
    after, before = paired(candidate, comparator)
    differences = [a - b for a, b in zip(after, before, strict=True)]
    n, lost, won, _, variance = moments(differences)
    if candidate.is_pass_fail and comparator.is_pass_fail:
        variance = (lost + won) / n
    return max(variance, _cluster_variance(differences, candidate.clusters))


def _cluster_variance(differences: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Return the variance that independent items would have for the mean to be as uncertain as it is."""
    if len(set(clusters)) < 2:
        return 0.0
    _, error, _ = clustered_mean(differences, clusters)
    return len(differences) * error**2


def clusters_needed(margin: float, reach: float, alpha: float) -> int:
    """Return the clusters of which a collapse that costs the margin would have hit one.

    Args:
        margin: loss that is allowed; a demanded gain, at most 0, asks for the usual minimum alone: what
            was gained is guarded from the next round on.
        reach: largest size of one item's difference; infinite: not known.
    """
    if math.isinf(reach):
        return windows_needed(margin, alpha)
    return max(MIN_SCORED_ITEMS, fewest_units(alpha, margin / reach))


def windows_needed(margin: float, alpha: float) -> int:
    """Return the windows of which damage to 1 in 20 would have hit one; `MIN_ITEMS` for a demanded gain."""
    return fewest_units(alpha) if margin > 0.0 else MIN_ITEMS


def of_clusters(
    result: Comparison,
    differences: Sequence[float],
    clusters: Sequence[Hashable],
    margin: float,
    alpha: float,
    reach: float,
    with_interval: bool = True,
) -> Comparison:
    """Return the larger p and the wider interval of the items' test and of one whose units are clusters.

    Neither alone knows both few changes and likeness within a cluster (Miller, arXiv 2411.00640, section
    2.2). The units are sums over clusters, so a large one counts as what it is: one draw.
    """
    families: dict[Hashable, list[float]] = {}
    for label, difference in zip(clusters, differences, strict=bool(clusters)):
        families.setdefault(label, []).append(difference)
    groups, n = len(families), result.n
    if groups in (0, n):
        return result
    needed = clusters_needed(margin, reach, alpha)
    fewest = result.fewest if groups >= needed else math.ceil(n * needed / groups)
    if groups < 2:
        return result._replace(fewest=fewest)
    sums = [math.fsum(members) for members in families.values()]
    sizes = [len(members) for members in families.values()]
    low, high = worst_case_interval(sums, alpha, sizes=sizes) if with_interval else UNBOUNDED
    return result._replace(
        p=max(result.p, worst_case_p(sums, margin, sizes=sizes)),
        interval=(min(result.interval[0], low), max(result.interval[1], high)),
        variance=max(result.variance, _cluster_variance(differences, clusters)),
        fewest=fewest,
    )


def unseen_reach(n: int, variance: float) -> float:
    """Return about how far below the mean the worst case lies, where the losses seen set it."""
    return BEYOND * math.sqrt(2.0 * math.log(max(n, 2)) * variance)


def _scores(
    differences: Sequence[float], margin: float, alpha: float, reach: float, with_interval: bool
) -> Comparison:
    n, lost, won, mean, variance = moments(differences)
    p = worst_case_p(differences, margin, reach=reach)
    interval = worst_case_interval(differences, alpha, reach=reach) if with_interval else UNBOUNDED
    few = MIN_SCORED_ITEMS
    return Comparison("bounded", n, lost, won, mean, interval, p, variance, few, reach)


def _corpora(
    candidate: ItemResults, comparator: ItemResults, formula: Formula, margin: float, alpha: float
) -> Comparison:
    """Compare values of pooled counts by a paired bootstrap of the items, and of clusters of them.

    ``lost`` and ``won`` count the items whose own value is lower or higher.
    """
    after, before = paired(candidate, comparator)
    n, lost, won, _, _ = moments([a - b for a, b in zip(after, before, strict=True)])
    after_NK, before_NK = paired_counts(candidate, comparator)
    result = paired_bootstrap(after_NK, before_NK, formula, margin, alpha)
    p, (low, high), variance, fewest = result.p, result.interval, result.variance, MIN_SCORED_ITEMS
    groups = len(set(candidate.clusters))
    if 0 < groups < n:
        labels = candidate.clusters
        sums = pooled(after_NK, labels), pooled(before_NK, labels)
        whole = paired_bootstrap(*sums, formula, margin, alpha)
        p = max(p, whole.p)
        low, high = min(low, whole.interval[0]), max(high, whole.interval[1])
        variance = max(variance, whole.variance * n / groups)
        if groups < MIN_SCORED_ITEMS:
            fewest = math.ceil(n * MIN_SCORED_ITEMS / groups)
    return Comparison(
        "bootstrap", n, lost, won, result.difference, (low, high), p, variance, fewest, result.reach
    )


def _losses(
    differences: Sequence[float], margin: float, alpha: float, with_interval: bool
) -> Comparison:
    """Compare values without a range, such as logprobs; a damaged window can have any."""
    n, lost, won, mean, variance = moments(differences)
    p = worst_case_p(differences, margin)
    interval = worst_case_interval(differences, alpha) if with_interval else UNBOUNDED
    few, reach = windows_needed(margin, alpha), unseen_reach(n, variance)
    return Comparison("unbounded", n, lost, won, mean, interval, p, variance, few, reach)

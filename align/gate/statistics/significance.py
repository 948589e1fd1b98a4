"""The tests behind a verdict: pure functions of counts and differences.

    pass/fail items     tango_noninferiority, tango_interval; mcnemar_exact describes
    scores              `align.gate.statistics.worst_case`, after item_means where items were sampled
    repeatedly;
                        paired_t_noninferiority, which earlier verdicts were drawn by
    never to fail       exact_interval
    many at once        holm for alarms; `align.gate.statistics.alpha` for a campaign's decisions
    beforehand          power, joint_power, smallest_margin, items_needed

A *difference* is candidate minus comparator, per item; ``lost`` are items that only the comparator
got right, ``won`` those that only the candidate did. One null hypothesis serves both questions:
*the candidate is worse by at least ``margin``*. Rejecting it with a positive margin shows
non-inferiority, with a margin of 0 superiority, with ``-gain`` superiority by more than ``gain``.

It does not decide anything and knows no suites: `align.gate.verdict` does. The normal distribution is the
standard library's, whose last bits most stored verdicts have; Student's t and the beta distribution are
scipy's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

_NORMAL = NormalDist()
_BISECTIONS = 80
_QUADRATURE = 200
"""Intervals of Simpson's rule over 8 standard deviations either way: exact to 1e-9."""


class ScoreTest(NamedTuple):
    """Outcome of a score test: standard normal statistic and one-sided p value."""

    z: float
    p: float


class PairedT(NamedTuple):
    """Outcome of a paired t test, with the interval of the mean difference."""

    t: float
    p: float
    dof: int
    interval: tuple[float, float]
    error: float
    """Standard error of the mean."""


def normal_cdf(z: float) -> float:
    """Compute P(Z <= z) of the standard normal; its tail is exact far below 1e-16."""
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def normal_quantile(p: float) -> float:
    """Find the z with P(Z <= z) = p, for 0 < p < 1."""
    return _NORMAL.inv_cdf(p)


def tango_noninferiority(lost: float, won: float, n: int, margin: float) -> ScoreTest:
    """Apply Tango's score test that the candidate is worse by at least ``margin``, to paired pass/fail.

    The variance is the one under the null (closed form for the constrained maximum likelihood), so
    the test keeps its level with few items: with none lost and none won it does not pass a small
    suite, where the Wald test has a standard error of 0. (Tango 1998, Statistics in Medicine 17.)

    Args:
        lost, won: discordant items; fractions are allowed for scores scaled into [-1, 1].
        n: all items, concordant ones included.
        margin: in shares of items, above -1 and below 1.

    >>> round(tango_noninferiority(lost=18, won=0, n=1500, margin=0.02).p, 4)
    0.0134
    """
    if n < 1 or lost < 0 or won < 0 or lost + won > n * (1 + 1e-12):
        raise ValueError(f"lost {lost} and won {won} are not counts out of {n}")
    if not -1.0 < margin < 1.0:
        raise ValueError(f"margin {margin} must lie between -1 and 1")
    z = _tango_z(lost, won, n, -margin)
    return ScoreTest(z=z, p=normal_cdf(-z))


def tango_interval(lost: float, won: float, n: int, alpha: float) -> tuple[float, float]:
    """Return the differences that neither one-sided test at ``alpha`` rejects: coverage 1 - 2 alpha.

    The lower end is above ``-margin`` exactly when the test with that margin rejects at ``alpha``.
    """
    critical = normal_quantile(1.0 - alpha)
    edge = 1.0 - 1e-12

    def end(level: float) -> float:
        if _tango_z(lost, won, n, -edge) <= level:
            return -1.0
        if _tango_z(lost, won, n, edge) >= level:
            return 1.0
        return _bisect(lambda d: level - _tango_z(lost, won, n, d), -edge, edge)

    return end(critical), end(-critical)


def paired_t_noninferiority(
    differences: Sequence[float],
    margin: float,
    clusters: Sequence[Hashable] | None = None,
    alpha: float = 0.05,
) -> PairedT:
    """Apply a paired t test that the mean difference of scores is at most ``-margin``.

    Args:
        differences: one per item, at least two. Their order does not change a bit of the result.
        clusters: a label per item where items come in families; the variance is then robust to
            correlation within a family and the degrees of freedom are families minus one.
        alpha: each side's error of the interval, whose coverage is 1 - 2 alpha.

    Where all differences are equal the standard error is 0 and the sign of mean + margin decides.
    """
    from scipy.special import stdtr, stdtrit

    mean, error, dof = clustered_mean(differences, clusters)
    t = _ratio(mean + margin, error)
    half = float(stdtrit(dof, 1.0 - alpha)) * error
    p = float(stdtr(dof, -t))
    return PairedT(t=t, p=p, dof=dof, interval=(mean - half, mean + half), error=error)


def clustered_mean(
    differences: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> tuple[float, float, int]:
    """Return the mean of differences, its standard error, and that error's degrees of freedom.

    Args:
        clusters: a label per item where items come in families; None: every item is one.
    """
    n = len(differences)
    labels: Sequence[Hashable] = range(n) if clusters is None else clusters
    if len(labels) != n:
        raise ValueError(f"{n} differences but {len(labels)} cluster labels")
    families: dict[Hashable, list[float]] = {}
    mean = math.fsum(differences) / n if n else 0.0
    for label, difference in zip(labels, differences, strict=True):
        families.setdefault(label, []).append(difference - mean)
    groups = len(families)
    if groups < 2:
        raise ValueError(f"a paired t test needs at least two independent items, got {groups}")
    squares = math.fsum(math.fsum(members) ** 2 for members in families.values())
    return mean, math.sqrt(groups / (groups - 1) * squares) / n, groups - 1


def item_means(values: Sequence[float], items: Sequence[Hashable]) -> dict[Hashable, float]:
    """Return the mean of every item's repeated samples, in the order in which items first come.

    Repeats of one item are not more items: they are averaged before any test, which then counts each
    item once (Miller, arXiv 2411.00640, section 3.2).

    >>> item_means([1.0, 0.0, 1.0], ["a", "a", "b"])
    {'a': 0.5, 'b': 1.0}
    """
    samples: dict[Hashable, list[float]] = {}
    for item, value in zip(items, values, strict=True):
        samples.setdefault(item, []).append(value)
    return {item: math.fsum(repeats) / len(repeats) for item, repeats in samples.items()}


def mcnemar_exact(lost: int, won: int) -> float:
    """Compute the exact two-sided p value that losing and winning an item are equally likely.

    >>> mcnemar_exact(1, 5)
    0.21875
    """
    discordant = lost + won
    tail = sum(math.comb(discordant, k) for k in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / (1 << discordant))


def exact_interval(failures: int, n: int, alpha: float) -> tuple[float, float]:
    """Return Clopper and Pearson's interval of a rate: each end is wrong by chance ``alpha`` at most.

    For lists on which nothing may fail: with no failure seen the rate can still be as high as
    1 - alpha^(1/n). (Clopper and Pearson 1934, Biometrika 26.)

    >>> [round(end, 3) for end in exact_interval(failures=0, n=50, alpha=0.05)]
    [0.0, 0.058]
    """
    if not 0 <= failures <= n or n < 1:
        raise ValueError(f"{failures} failures are no count out of {n}")
    from scipy.special import betainccinv, betaincinv

    low = float(betaincinv(failures, n - failures + 1, alpha)) if failures > 0 else 0.0
    high = float(betainccinv(failures + 1, n - failures, alpha)) if failures < n else 1.0
    return low, high


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values: those up to ``alpha`` are alarms, with any false one among all by chance ``alpha``.

    For alarms only. A verdict that needs *every* check to pass asks for no correction. (Holm 1979,
    Scandinavian Journal of Statistics 6.)

    >>> holm([0.01, 0.5, 0.02])
    [0.03, 0.5, 0.04]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def critical_value(
    n: int,
    psi: float,
    alpha: float,
    reach: float = 0.0,
    *,
    margin: float = 0.0,
    loss: float = 0.0,
) -> float:
    """Return the distance of a mean from its margin, in standard errors, from which on a test passes.

    Args:
        psi: variance of one difference.
        reach: size of the worst difference that the test reckons with, as one item more with an
            exponential weight (`align.gate.statistics.worst_case`); 0: none, as in a test by the normal
            distribution, whose critical values these are.
        margin: of pass/fail items, where Tango's test reckons with more than ``psi``: with what would
            change if the margin were lost. 0 for scores.
        loss: true loss of the candidate, at most ``psi`` of pass/fail items.

    >>> round(critical_value(100, 0.1, 0.05), 3), round(critical_value(100, 0.1, 0.05, reach=1.0), 3)
    (1.645, 2.054)
    """
    usual = normal_quantile(1.0 - alpha)
    if margin > 0.0 and psi > 0.0:
        return usual * math.sqrt(
            _tango_variance((psi + loss) / 2, (psi - loss) / 2, 1, -margin) / psi
        )
    if reach <= 0.0 or psi <= 0.0:
        return usual
    ratio = math.sqrt(n * psi) / reach

    def spare(z: float) -> float:
        """Compute alpha - P(Z <= exponential), Z normal with mean ``z * ratio``, deviation ``ratio``."""
        above = ratio - z
        density = math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
        beyond = (
            density / above
            if above > 30.0
            else math.exp(0.5 * ratio * ratio - z * ratio) * normal_cdf(-above)
        )
        return alpha - normal_cdf(-z) - beyond

    return _bisect(spare, usual, usual + 1.0 / ratio + math.log(1.0 / alpha) / ratio + ratio)


def power(
    n: int,
    psi: float,
    margin: float,
    alpha: float,
    *,
    loss: float = 0.0,
    pass_fail: bool = True,
    reach: float = 0.0,
) -> float:
    """Compute the chance that a candidate is shown to lose less than ``margin`` on ``n`` items.

    By the normal approximation that `smallest_margin` and `items_needed` invert, whose parameters
    these are. For Tango's test it is within two points of the exact chance from 20 changed items on.

    Args:
        loss: true loss of the candidate; 0: it is equal.

    >>> round(power(837, 0.05, 0.02, 0.05), 2)
    0.8
    >>> round(power(837, 0.05, 0.02, 0.05, loss=0.02), 2)
    0.05
    """
    if n < _items_when_nothing_differs(margin, alpha, pass_fail, reach):
        return 0.0
    psi = _changed(psi, loss, pass_fail)
    if psi <= 0.0:
        return 1.0
    return normal_cdf(_room(n, psi, margin, alpha, loss, pass_fail=pass_fail, reach=reach))


def _changed(psi: float, loss: float, pass_fail: bool) -> float:
    """Return the variance of a difference: of pass/fail items, what is lost has changed."""
    return max(psi, loss) if pass_fail else psi


def _room(
    n: int, psi: float, margin: float, alpha: float, loss: float, *, pass_fail: bool, reach: float
) -> float:
    """Return how far the mean lies, in its standard deviations, above the least that passes."""
    if not pass_fail:
        return (margin - loss) * math.sqrt(n / psi) - critical_value(n, psi, alpha, reach)
    critical = critical_value(n, psi, alpha, margin=margin, loss=loss)
    deviation = max(psi - loss * loss, 1e-12)
    return ((margin - loss) * math.sqrt(n) - critical * math.sqrt(psi)) / math.sqrt(deviation)


def joint_power(
    n: int,
    psi: float | Sequence[float],
    margins: Sequence[float],
    alpha: float,
    *,
    loss: float = 0.0,
    pass_fail: bool = True,
    reach: float = 0.0,
) -> float:
    """Return the chance that a candidate is shown to lose less than every comparator's margin.

    Args:
        psi: of one difference, as in `power`; one for all comparators, or one for each.

    All snapshots are equal, but for a candidate with a ``loss``, and answer with as much noise of their
    own, so that two comparisons with one candidate are correlated by one half; what is left is an integral
    over the candidate's own noise. (Dunnett 1955, Journal of the American Statistical Association 50.)

    >>> joint_power(837, 0.05, [0.02], 0.05) == power(837, 0.05, 0.02, 0.05)
    True
    >>> round(joint_power(837, 0.05, [0.02, 0.02, 0.02], 0.05), 2)
    0.61
    """
    stated = [psi] * len(margins) if isinstance(psi, int | float) else psi
    psis = [_changed(v, loss, pass_fail) for v in stated]
    pairs = list(zip(psis, margins, strict=True))
    each = [
        power(n, v, margin, alpha, loss=loss, pass_fail=pass_fail, reach=reach)
        for v, margin in pairs
    ]
    if len(each) < 2 or min(psis) == 0 or min(each) == 0.0:
        return min(each, default=1.0)
    return _joint_chance(
        tuple(
            math.sqrt(2.0) * _room(n, v, margin, alpha, loss, pass_fail=pass_fail, reach=reach)
            for v, margin in pairs
        )
    )


@lru_cache(maxsize=4096)
def _joint_chance(rooms: tuple[float, ...]) -> float:
    """Return the integral of `joint_power`, by Simpson's rule; a search asks for the same ones again."""
    step = 16.0 / _QUADRATURE

    def density(index: int) -> float:
        common = index * step - 8.0
        passed = math.prod(normal_cdf(room + common) for room in rooms)
        return math.exp(-0.5 * common * common) / math.sqrt(2.0 * math.pi) * passed

    weights = (1 if i in (0, _QUADRATURE) else 4 if i % 2 else 2 for i in range(_QUADRATURE + 1))
    return math.fsum(w * density(i) for i, w in enumerate(weights)) * step / 3.0


def smallest_margin(
    n: int,
    psi: float,
    alpha: float,
    power: float = 0.8,
    *,
    pass_fail: bool = True,
    reach: float = 0.0,
) -> float:
    """Find the smallest margin that ``n`` items can show with ``power`` for an equal candidate.

    Args:
        psi: variance of one difference; for pass/fail items the share of discordant ones,
            (lost + won) / n.
        pass_fail: also count the margin that Tango's test asks for when nothing differs at all.
        reach: size of the worst difference that a test of scores reckons with; see `critical_value`.

    >>> round(smallest_margin(837, 0.05, 0.05), 3)
    0.02
    """
    wanted, error = normal_quantile(power), math.sqrt(psi / n)
    if pass_fail:
        squared = normal_quantile(1.0 - alpha) ** 2

        def room(margin: float) -> float:
            return margin - error * (critical_value(n, psi, alpha, margin=margin) + wanted)

        return max(_bisect(room, 1e-12, 1.0), squared / (n + squared))
    unchanged: float = reach * (1.0 - alpha ** (1.0 / n))
    return max(error * (critical_value(n, psi, alpha, reach) + wanted), unchanged)


def items_needed(
    psi: float,
    margin: float,
    alpha: float,
    power: float = 0.8,
    *,
    pass_fail: bool = True,
    reach: float = 0.0,
) -> int:
    """Find the number of items that show ``margin`` with ``power`` for an equal candidate.

    Args:
        psi: variance of one difference; for pass/fail items the share of discordant ones.
        pass_fail: also count the items that Tango's test asks for when nothing differs at all.
        reach: size of the worst difference that a test of scores reckons with; see `critical_value`.

    >>> items_needed(psi=0.05, margin=0.02, alpha=0.05)
    837
    """
    wanted, floor = power, _items_when_nothing_differs(margin, alpha, pass_fail, reach)

    def enough(n: int) -> bool:
        tested = margin if pass_fail else 0.0
        deviates = critical_value(n, psi, alpha, reach, margin=tested) + normal_quantile(wanted)
        return n >= deviates**2 * psi / margin**2

    high = max(1, math.ceil(floor))
    while not enough(high):
        high *= 2
    low = max(1, math.ceil(floor), high // 2)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high


def _items_when_nothing_differs(
    margin: float, alpha: float, pass_fail: bool, reach: float
) -> float:
    """Return the items that show the margin where no item changes.

    Tango's z of no lost and no won item is sqrt(n m / (1 - m)); the weight of a worst case of size r is
    above m / r with a chance of (1 - m / r)^n.
    """
    if margin <= 0.0:
        return 0.0
    if pass_fail:
        return normal_quantile(1.0 - alpha) ** 2 * (1.0 - margin) / margin
    return math.log(alpha) / math.log1p(-margin / reach) if margin < reach else 0.0


def _tango_z(lost: float, won: float, n: int, d: float) -> float:
    """Score statistic of "the true difference is ``d``"; falls as ``d`` rises."""
    variance = _tango_variance(lost, won, n, d)
    return _ratio(won - lost - n * d, math.sqrt(max(0.0, variance)))


def _tango_variance(lost: float, won: float, n: float, d: float) -> float:
    """Return the variance of ``won - lost`` for a true difference ``d``, as Tango's test estimates it."""
    b = -(lost + won) + (2 * n - won + lost) * d
    c = -lost * d * (1.0 - d)
    root = math.sqrt(max(0.0, b * b - 8 * n * c))
    # The same root in two forms: the plain one cancels where b is positive.
    q = -2.0 * c / (b + root) if b > 0 else (root - b) / (4 * n)
    return n * (2.0 * q + d * (1.0 - d))


def _ratio(value: float, error: float) -> float:
    """Divide a value by its error; an error of 0 leaves only the sign to go by."""
    if error > 0.0:
        return value / error
    return 0.0 if value == 0.0 else math.copysign(math.inf, value)


def _bisect(rising: Callable[[float], float], low: float, high: float) -> float:
    """Find where a rising function crosses 0 between ``low`` and ``high``."""
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if rising(middle) < 0.0:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)

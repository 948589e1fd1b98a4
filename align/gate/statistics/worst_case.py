"""The mean of losses that may be skewed: Gaffke's test, which adds one unit that is as bad as can be.

With independent ``t_1..t_n`` (differences plus margin), ``w < 0`` below which none can lie, and weights
drawn evenly from the simplex (Dirichlet(1, ..., 1) over n + 1 units),

    p = P( W_1 t_1 + ... + W_n t_n + W_0 w <= 0 )

is the p value of "the mean is at most 0". It is Rubin's Bayesian bootstrap with the worst case as one more
observation: a rare collapse that nobody has seen is in there. Where an item can only have two values it is
the exact test of Clopper and Pearson; where spread decides it comes to the t test; it asks for about
``|w| log(1/p) / n`` of mean on top. (Gaffke 2005, Mathematical Methods of Statistics 14; Learned-Miller and
Thomas 2019, arXiv 1905.06208.) The level is proved for two values and for one item, no violation is known
for others, and ``python -m benchmarks.gate`` looks for one. A betting interval (Waudby-Smith and Ramdas
2024) has a proof for all and asks for 1.7 times the items at .005.

Where no worst case is known, the unit added is below the mean by half as much again as the farthest one
seen is off it: what can be won can be lost. Such a test sees no damage that hit none of its units:
`fewest_units` says how many rule that out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
RARE = 1 / 20
"""Share of units that a damage of unknown size may hit and still has to be seen once."""
BEYOND = 1.5
"""Distance of the added unit from the mean, as a multiple of the farthest unit's, if no bound is known."""
DIGITS = 9
"""Significant digits that are kept: the last bits of a sum differ between machines."""
_NODES = 16384
_CLOSE = 1e-10
_STEPS = 40


def worst_case_p(
    differences: Sequence[float],
    margin: float,
    *,
    reach: float | None = None,
    sizes: Sequence[int] | None = None,
) -> float:
    """Return the p value of "the mean difference is at most ``-margin``", whatever the shape of the losses.

    Args:
        differences: one per independent unit; where units are clusters of items, the sum of theirs.
            Their order does not change a bit of the result.
        reach: largest size of one difference; None: not known, see the module.
        sizes: items of each unit; None: one each.

    >>> p = worst_case_p([0.0] * 99 + [-1.0], 0.1, reach=1.0)
    >>> round(p, 6)  # P(X <= 1) of X binomial with n = 100 and rate .1
    0.000322
    """
    units, items = _sorted(differences, sizes)
    return rounded(_p_value(units, items, margin, reach))


def worst_case_interval(
    differences: Sequence[float],
    alpha: float,
    *,
    reach: float | None = None,
    sizes: Sequence[int] | None = None,
) -> tuple[float, float]:
    """Return the mean differences that neither one-sided test at level ``alpha`` rejects.

    The coverage is 1 - 2 alpha; other parameters are those of `worst_case_p`.
    """
    low = _lower_end(*_sorted(differences, sizes), alpha, reach)
    high = -_lower_end(*_sorted([-d for d in differences], sizes), alpha, reach)
    return rounded(low), rounded(high)


def fewest_units(alpha: float, share: float = RARE) -> int:
    """Count the units among which a damage to a ``share`` of all shows at least once by chance 1 - alpha.

    >>> fewest_units(0.05), fewest_units(0.005)
    (59, 104)
    """
    if not 0.0 < share < 1.0:
        return 1
    return math.ceil(math.log(alpha) / math.log1p(-share))


def simplex_tail(values: Vector) -> float:
    """Compute P(sum of W_i v_i <= 0) with even weights on the simplex, to ten digits.

    The sum of the weights does not matter to the sign, so they are independent exponentials, and the
    probability is an integral of 1 / prod(1 - s v_i) along a line through its saddle point.
    """
    distinct, counts = np.unique(values, return_counts=True)
    if distinct[0] >= 0.0 or distinct[-1] <= 0.0:
        return float(distinct[-1] <= 0.0)
    if float(distinct @ counts) < 0.0:
        return 1.0 - _left_tail(-distinct[::-1], counts[::-1])
    return _left_tail(distinct, counts)


def _sorted(differences: Sequence[float], sizes: Sequence[int] | None) -> tuple[Vector, Vector]:
    """Return units and their sizes in one order: sums over them are then the same whatever it was."""
    units = np.asarray(differences, dtype=np.float64)
    items = np.ones(len(units)) if sizes is None else np.asarray(sizes, dtype=np.float64)
    order = np.lexsort((items, units))
    return units[order], items[order]


def _p_value(units: Vector, items: Vector, margin: float, reach: float | None) -> float:
    totals = units + margin * items
    if reach is not None:
        worst = margin - reach
    else:
        # Off what they would be at the common mean: that a cluster is large is no deviation.
        off = units - items * float(units.sum() / items.sum())
        worst = float(totals.mean()) - BEYOND * float(np.abs(off).max())
    return simplex_tail(np.append(totals, worst))


def _lower_end(units: Vector, items: Vector, alpha: float, reach: float | None) -> float:
    """Return the largest mean below which the test at level ``alpha`` rejects every one."""

    def excess(end: float) -> float:
        p = _p_value(units, items, -end, reach)
        return math.log(max(p, 1e-300) / alpha)

    mean = float(units.sum() / items.sum())
    if reach is not None:
        return _crossing(excess, -reach, mean)
    step = float(np.ptp(units / items))
    if step == 0.0:
        return mean
    while excess(mean - step) > 0.0:
        step *= 2.0
    return _crossing(excess, mean - step, mean)


def _crossing(rising: Callable[[float], float], low: float, high: float) -> float:
    """Return where a rising function crosses 0, by the Illinois rule; an end if it does not cross."""
    below, above = rising(low), rising(high)
    if below >= 0.0 or above <= 0.0:
        return low if below >= 0.0 else high
    scale, last = high - low, 0
    for _ in range(_STEPS):
        # The values at the ends are no longer to scale once one was halved: bisection keeps progress.
        middle = low - below * (high - low) / (above - below)
        if not low < middle < high:
            middle = 0.5 * (low + high)
        value = rising(middle)
        if value < 0.0:
            above = 0.5 * above if last < 0 else above
            low, below, last = middle, value, -1
        else:
            below = 0.5 * below if last > 0 else below
            high, above, last = middle, value, 1
        if abs(value) < _CLOSE or high - low <= _CLOSE * scale:
            return middle
    return 0.5 * (low + high)


def _left_tail(values: Vector, counts: NDArray[np.int64]) -> float:
    """Return the tail where the mean is not below 0: both signs occur, sorted, each ``counts`` times."""
    values = values / float(np.abs(values).max())
    pole = 1.0 / float(values[0])
    point = _saddle(values, counts, pole)
    near = min(-point, point - pole)
    height = -float(counts @ np.log1p(-values * point)) - math.log(-point)

    def over(nodes: NDArray[np.floating[Any]]) -> float:
        """Sum of the integrand over some nodes; the line is near * sinh(node) above the real axis."""
        line = point + 1j * near * np.sinh(nodes)
        logs = -(np.log(1.0 - np.outer(line, values)) @ counts) - np.log(-line) - height
        return float((np.exp(logs) * np.cosh(nodes)).real.sum())

    end = _end_of(values / (1.0 - values * point), counts, near, point)
    size, step = 16, end / 16
    total = 0.5 + over(step * np.arange(1, size + 1))
    integral = total * step
    while size < _NODES:
        # Halving the step of the trapezoidal rule squares its error: the integrand is analytic.
        total += over(step * (np.arange(size) + 0.5))
        step, size, before = step / 2, size * 2, integral
        integral = total * step
        if abs(integral - before) <= _CLOSE * abs(integral):
            break
    return math.exp(height) * near / math.pi * integral


def _saddle(values: Vector, counts: NDArray[np.int64], pole: float) -> float:
    """Return where the integrand is smallest on the real axis between its poles."""
    low, high = pole, 0.0
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        slope = float(counts @ (values / (1.0 - values * middle))) - 1.0 / middle
        low, high = (low, middle) if slope > 0.0 else (middle, high)
    return 0.5 * (low + high)


def _end_of(tilted: Vector, counts: NDArray[np.int64], near: float, point: float) -> float:
    """Return the node from which on the integrand is below 1e-15 of its peak."""
    end = 1.0
    while end < 600.0:
        height = near * math.sinh(end)
        fall = 0.5 * float(counts @ np.log1p((tilted * height) ** 2))
        if math.log(math.cosh(end)) - fall - math.log(math.hypot(1.0, height / point)) < -35.0:
            break
        end *= 1.2
    return end


def rounded(value: float) -> float:
    """Return a number with the digits that are the same on all machines."""
    return float(f"{value:.{DIGITS - 1}e}")

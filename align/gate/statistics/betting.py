"""The mean of bounded differences, item by item: a bet against "worse by the margin", for early stopping.

A wealth of 1 is staked on ``x = difference + margin`` being positive on average. Of every unit it becomes

    K <- K (1 + b x),    0 <= b <= MOST / (largest loss of one unit)

with ``b`` fixed before the unit is seen. If the mean of ``x`` is at most 0, the wealth is a nonnegative
supermartingale, so it ever reaches ``1 / alpha`` with a chance of at most ``alpha`` (Ville 1939), however
the differences are distributed and whenever one looks (Waudby-Smith and Ramdas 2024, JRSS B 86). The p
value ``1 / max K`` holds at every stop.

The bet is the larger of two. Kelly's, ``margin / variance``, grows fastest if the candidate is equal, and
`KELLY` of it nearly so; ``sqrt(2 log(1 / (alpha K)) / (variance * units left))`` stakes what is still
missing on the units that are left (STaR-Bets, Voracek and Orabona 2025). Alone, the first has too little
power at the last item and the second stops late.

Bets change between blocks, `BLOCKS` in all, so that the order within a block does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from align.gate.statistics.significance import normal_quantile

Vector = NDArray[np.float64]
BLOCKS = 96
"""Blocks of units in a whole suite; bets are placed before each."""
MOST = 0.9
"""Largest share of the wealth that one unit can lose."""
KELLY = 0.8
"""Part of Kelly's bet: all of it loses more than it wins where the variance was taken for too small."""
PRIOR_UNITS = 30.0
"""Weight of the assumed variance, in units: that of one unit in four which changes by the whole range."""
PRIOR_SHARE = 0.25
HOPELESS = 0.01
"""Chance to pass with all of the suite's items, were the candidate equal, below which it is given up."""
TINY = 1e-12
DIGITS = 9
"""Significant digits of a p value: the last bits of a sum differ between machines."""


class Wager(NamedTuple):
    """State of a bet after the units seen so far."""

    log_wealth: float
    """Largest logarithm of the wealth at the end of a block, at least 0."""
    lacking: float
    """Logarithm of what the wealth must still be multiplied by; 0 once it was large enough."""
    variance: float
    """Variance of one unit's difference that the next bet uses."""
    units: int = 0
    """Units after which the bet was won; those seen, if it was not."""

    @property
    def p(self) -> float:
        """The p value of "the mean difference is at most ``-margin``"."""
        return _rounded(math.exp(-self.log_wealth))


def wager(
    differences: Sequence[float] | Vector,
    margin: float,
    alpha: float,
    *,
    reach: float,
    units: int,
    sizes: Sequence[int] | None = None,
    largest: int = 1,
) -> Wager:
    """Place a bet that the mean difference is above ``-margin``, block by block.

    Args:
        differences: in the order of measuring, one per independent unit; where units are clusters, the sum
            over the cluster's items.
        margin: loss that is allowed; below 0 a gain is demanded.
        alpha: level at which the bet is won and ends.
        reach: largest size of one item's difference.
        units: those of the whole suite, seen or not.
        sizes: items of each unit; None: one each.
        largest: items of the suite's largest unit.

    Raises:
        ValueError: a difference is larger than ``reach`` allows, or there are more than ``units``.

    >>> wager([0.0] * 96, 0.5, 0.05, reach=1.0, units=96).p <= 0.05
    True
    """
    totals = np.asarray(differences, dtype=np.float64)
    items = np.ones(len(totals)) if sizes is None else np.asarray(sizes, dtype=np.float64)
    if len(totals) > units or np.any(np.abs(totals) > reach * items * (1 + 1e-12)):
        raise ValueError(f"{len(totals)} differences of up to {reach} do not fit {units} units")
    if margin >= reach:
        return Wager(math.inf, 0.0, 0.0, min(1, len(totals)))
    ends = [end for end in blocks(units) if end < len(totals)] + [len(totals)]
    parts = list(zip([0, *ends[:-1]], ends, strict=True))
    cap = MOST / ((reach - margin) * largest)
    prior = PRIOR_UNITS * PRIOR_SHARE * (reach * largest) ** 2
    wanted, wealth, most, spread, size = -math.log(alpha), 0.0, 0.0, 0.0, 1.0
    for begin, end in parts:
        # In one order a sum is the same whatever the order in the block was.
        order = np.lexsort((items[begin:end], totals[begin:end]))
        block, sizes_of = totals[begin:end][order], items[begin:end][order]
        variance = (prior + spread) / (PRIOR_UNITS + begin)
        lacking = max(0.0, wanted - wealth)
        stake = min(cap, _stake(margin * size, variance, lacking, units - begin))
        wealth += float(np.sum(np.log1p(stake * (block + margin * sizes_of))))
        most, spread = max(most, wealth), spread + float(block @ block)
        if _rounded(math.exp(-most)) <= alpha:
            return Wager(most, 0.0, (prior + spread) / (PRIOR_UNITS + end), end)
        size = float(items[:end].sum()) / end
    num_units = len(totals)
    variance = (prior + spread) / (PRIOR_UNITS + num_units)
    return Wager(most, max(TINY, wanted - wealth), variance, num_units)


def is_hopeless(state: Wager, margin: float, left: int) -> bool:
    """Tell if an equal candidate would hardly pass any more, with ``left`` units to come.

    Stopping for this only loses power: a bet that is given up is not won.

    >>> is_hopeless(Wager(0.0, 8.0, 0.1), 0.02, 100), is_hopeless(Wager(0.0, 5.0, 0.1), 0.02, 9000)
    (True, False)
    """
    if state.lacking == 0.0 or left <= 0:
        return state.lacking > 0.0
    # Of a demanded gain no size is expected; only one of a whole deviation is out of the question.
    drift = margin if margin > 0.0 else math.sqrt(state.variance)
    room = drift * math.sqrt(left / state.variance) - math.sqrt(2.0 * state.lacking)
    return room < normal_quantile(HOPELESS)


def lower_end(
    differences: Sequence[float],
    alpha: float,
    *,
    reach: float,
    units: int,
    sizes: Sequence[int] | None = None,
    largest: int = 1,
) -> float:
    """Return the mean difference below which every one is rejected at ``alpha``, to a 2,000th of ``reach``.

    Other parameters are those of `wager`.
    """
    low, high = -reach, reach
    while high - low > reach / 2000:
        middle = 0.5 * (low + high)
        state = wager(
            differences, -middle, alpha, reach=reach, units=units, sizes=sizes, largest=largest
        )
        low, high = (middle, high) if state.lacking == 0.0 else (low, middle)
    return _rounded(low)


def blocks(units: int) -> list[int]:
    """Return where the blocks of a suite end; small suites have a block per unit.

    >>> blocks(3), blocks(192)[:3]
    ([1, 2, 3], [2, 4, 6])
    """
    count = min(BLOCKS, units)
    return [units * (index + 1) // count for index in range(count)]


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS - 1}e}")


def _stake(gain: float, variance: float, lacking: float, left: int) -> float:
    """Return the larger of Kelly's bet, in part, and the one that stakes what is lacking on the rest."""
    if variance <= 0.0:
        return math.inf
    late = math.sqrt(2.0 * lacking / (variance * left))
    return max(KELLY * gain / variance, late)

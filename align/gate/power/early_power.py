"""Power and expected items of suites that may stop early, for an equal candidate.

Items are many, so what a block adds to the logarithm of the wealth is taken for normal; bets are those of
`align.gate.statistics.betting`, the capped ones and the assumed variance included. Paths are drawn once
and reused, so
that the result is the same every time and rises with the items.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from align.gate.statistics.betting import BLOCKS, KELLY, MOST, PRIOR_SHARE, PRIOR_UNITS

PATHS = 2000
STEPS = 12
"""Bisections of a search for items or a margin: to 2% of an octave."""


class EarlyPower(NamedTuple):
    """Chances and cost of a suite that may stop early, for an equal candidate."""

    each: tuple[float, ...]
    """Chance to pass, by comparator."""
    joint: float
    """Chance to pass against all."""
    items: float
    """Expected items until every comparator is decided; all of them where the candidate fails."""


@lru_cache(maxsize=4096)
def early_power(
    n: int,
    variances: tuple[float, ...],
    margins: tuple[float, ...],
    alpha: float,
    reach: float = 1.0,
    loss: float = 0.0,
    looks: int = BLOCKS,
) -> EarlyPower:
    """Return the chances and the cost of a candidate.

    Args:
        n: items of the whole suite.
        variances: of one item's difference, by comparator.
        margins: by comparator.
        reach: largest size of one difference.
        loss: true loss of the candidate; 0: it is equal.
        looks: batches that the suite is measured in; a bet that is won in between ends with the batch.
    """
    margin, variance = (np.array(column)[:, None] for column in (margins, variances))
    wanted, size = -math.log(alpha), n / BLOCKS
    # Normals by comparator, path and block, correlated by one half: they share the candidate.
    drawn = np.random.default_rng(0).standard_normal((len(margins) + 1, PATHS, BLOCKS))
    noise = (drawn[1:] + drawn[:1]) / math.sqrt(2.0)
    wealth = np.zeros(noise.shape[:2])
    stops = np.full(wealth.shape, float(n))
    open_ = np.ones(wealth.shape, dtype=bool)
    for block in range(BLOCKS):
        measured = block * size
        assumed = PRIOR_UNITS * PRIOR_SHARE * reach**2
        spread = (assumed + variance * measured) / (PRIOR_UNITS + measured)
        lacking = np.maximum(0.0, wanted - wealth)
        stake = np.maximum(
            KELLY * margin / spread, np.sqrt(2.0 * lacking / (spread * (n - measured)))
        )
        stake = np.minimum(stake, MOST / np.maximum(reach - margin, 1e-9))
        # log(1 + s x) up to its second moment, exact where nothing changes.
        gain = np.log1p(stake * (margin - loss))
        mean = gain - 0.5 * np.exp(-2.0 * gain) * stake**2 * variance
        wealth += mean * size + stake * np.sqrt(variance * size) * noise[:, :, block]
        hit = open_ & (wealth >= wanted)
        stops[hit] = (block + 1) * size
        open_ &= ~hit
    batch = n / looks
    stops = np.minimum(np.ceil(stops / batch - 1e-9) * batch, n)
    each = tuple((1.0 - open_.mean(axis=1)).tolist())
    return EarlyPower(each, float((~open_).all(axis=0).mean()), float(stops.max(axis=0).mean()))


def drifted(variance: float, rounds: int, width: float | None) -> float:
    """Return the variance of one item's difference to a snapshot that lies several rounds back.

    Every round turns a share of the answers, some of them back: with ``c`` the variance between answers
    that have nothing in common, ``c (1 - (1 - v / c)^t)``. Where the range is not known it adds up.

    Args:
        width: range of the metric; None: not known.

    >>> round(drifted(0.1, 3, 1.0), 3), drifted(0.01, 3, None)
    (0.244, 0.03)
    """
    if width is None:
        return variance * max(1, rounds)
    most = max(0.5 * width**2, variance)
    return most * (1.0 - (1.0 - variance / most) ** max(1, rounds))


def mean_variance(parent: float, start: float) -> float:
    """Return the variance to the best so far, which lies between the parent and the start.

    >>> round(mean_variance(0.12, 0.4), 2)
    0.26
    """
    return 0.5 * (parent + start)

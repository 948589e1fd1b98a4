"""One part's values made comparable with the other parts', before they are weighted and summed.

Pure functions over the values of one part within one group: the completions of one prompt, those on which
the part counts. Not over the batch: a prompt that is harder than others must not look like worse answers,
and groups can be scored as they finish.

    zscore   (r - mean_G(r)) / (std_G(r) + eps), unbiased, as GRPO centres rewards (arXiv 2402.03300
             section 4.1); here part by part, as in arXiv 2601.05242 eq. 4
    rank     (rank - 1) / (G - 1) in [0, 1], ties share their mean rank: only the order counts
    clip     min(max(r, low), high): the one that does not depend on the others of the group
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Literal

Normalise = Literal["none", "zscore", "rank", "clip"]
"""Transformation of the values of a part before they are summed."""
Bounds = tuple[float, float]
"""Least and largest value, in units of the part."""

COMPARING: frozenset[Normalise] = frozenset({"zscore", "rank"})
"""Transformations that compare the completions of a prompt: a single one has nothing to be compared
with."""
EPS = 1e-4
"""Added to the standard deviation (reward units)."""


def normalised(
    kind: Normalise, values_G: Sequence[float], bounds: Bounds | None = None
) -> list[float]:
    """Transform the values [G] of one part into those that count in the sum.

    Args:
        bounds: of ``clip``.

    >>> normalised("rank", [3.0, 1.0, 3.0])
    [0.75, 0.0, 0.75]
    """
    return NORMALISATIONS[kind](values_G, bounds)


def _zscore(values_G: Sequence[float], _: Bounds | None) -> list[float]:
    if len(values_G) < 2 or min(values_G) == max(values_G):
        return [0.0] * len(values_G)
    mean, spread = fmean(values_G), stdev(values_G)
    return [(value - mean) / (spread + EPS) for value in values_G]


def _rank(values_G: Sequence[float], _: Bounds | None) -> list[float]:
    if len(values_G) < 2:
        return [0.5] * len(values_G)
    below = [sum(other < value for other in values_G) for value in values_G]
    equal = [sum(other == value for other in values_G) - 1 for value in values_G]
    most = len(values_G) - 1
    return [(low + ties / 2) / most for low, ties in zip(below, equal, strict=True)]


def _clip(values_G: Sequence[float], bounds: Bounds | None) -> list[float]:
    if bounds is None:
        raise ValueError("clip needs bounds")
    low, high = bounds
    return [min(max(value, low), high) for value in values_G]


NORMALISATIONS: Mapping[Normalise, Callable[[Sequence[float], Bounds | None], list[float]]] = {
    "none": lambda values_G, _: list(values_G),
    "zscore": _zscore,
    "rank": _rank,
    "clip": _clip,
}

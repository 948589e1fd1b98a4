"""Advantages, which say how much better a completion is than its peers; functions of plain numbers.

Legend: ``_G`` completions of one prompt, ``_PG`` groups of a step. None stands for a completion without
a usable reward: it is left out of every mean and gets no advantage.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Literal

from rollouts.types import Score

Scale = Literal["group", "batch", "none"]
"""Spread that centred rewards are divided by."""

EPS = 1e-4
"""Added to the standard deviation (reward units), as TRL does, so that parity is exact."""

FLOOR = 0.1
"""Lower bound of a batch's standard deviation (reward units), so that small noise is not scaled up."""


def group_relative(
    rewards_PG: Sequence[Sequence[float | None]], scale: Scale, *, eps: float = EPS
) -> list[list[float | None]]:
    """Compute ``r - mean_G(r)`` in every group, divided according to ``scale``; shape as given.

    ``group`` divides by the group's unbiased standard deviation plus ``eps`` (arXiv 2402.03300 section
    4.1), ``batch`` by the standard deviation of all centred rewards, at least `FLOOR`; ``none`` does not
    divide (Dr. GRPO, arXiv 2503.20783). A group with fewer than two scored completions has nothing to
    compare, so all of it is None.

    >>> group_relative([[1.0, 0.0, None, 0.5]], "none")
    [[0.5, -0.5, None, 0.0]]
    """
    centred_PG = [_centred(rewards_G) for rewards_G in rewards_PG]
    if scale == "none":
        return centred_PG
    if scale == "group":
        return [_divided(centred_G, _spread(centred_G) + eps) for centred_G in centred_PG]
    everything = [value for centred_G in centred_PG for value in centred_G]
    spread = max(_spread(everything), FLOOR)
    return [_divided(centred_G, spread) for centred_G in centred_PG]


def group_relative_by_part(
    scores_PG: Sequence[Sequence[Score]], scale: Scale, *, eps: float = EPS
) -> list[list[float | None]]:
    """Compute the group-relative advantages of every reward part on its own; weight and sum them.

    Normalising the sum lets the part with the largest spread set the scale; normalising the parts
    gives each its declared weight whatever its spread (arXiv 2601.05242, eq. 4). A part that abstained,
    or that a gate holds back, adds nothing. Unless ``scale`` is ``none``, the sums are divided by their
    standard deviation over the whole step plus ``eps``, so that their size does not grow with the number of
    parts (eq. 6 there). Equation 6 also subtracts their mean, which is 0 here since every part is centred.
    """
    usable_PG = [[score.status == "scored" for score in scores_G] for scores_G in scores_PG]
    # A single scored completion has nothing to be compared with.
    usable_PG = [
        usable_G if sum(usable_G) >= 2 else [False] * len(usable_G) for usable_G in usable_PG
    ]
    totals_PG = [[0.0] * len(scores_G) for scores_G in scores_PG]
    weights = {name: w for scores_G in scores_PG for s in scores_G for name, w in s.weights.items()}
    for part, weight in sorted(weights.items()):
        values_PG = [
            [s.terms.get(part) if ok else None for s, ok in zip(scores_G, usable_G, strict=True)]
            for scores_G, usable_G in zip(scores_PG, usable_PG, strict=True)
        ]
        for totals_G, advantages_G in zip(
            totals_PG, group_relative(values_PG, scale, eps=eps), strict=True
        ):
            for i, advantage in enumerate(advantages_G):
                totals_G[i] += 0.0 if advantage is None else weight * advantage
    masked_PG = [
        [total if ok else None for total, ok in zip(totals_G, usable_G, strict=True)]
        for totals_G, usable_G in zip(totals_PG, usable_PG, strict=True)
    ]
    if scale == "none":
        return masked_PG
    spread = _spread([total for masked_G in masked_PG for total in masked_G]) + eps
    return [_divided(masked_G, spread) if spread else masked_G for masked_G in masked_PG]


def leave_one_out(rewards_PG: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """Compute ``r_i`` minus the mean reward of the group's other completions; shape as given.

    This equals ``n / (n - 1) (r_i - mean_G(r))`` with ``n`` scored completions. A group with fewer than
    two has nothing to compare, so all of it is None. Source: Ahmadian et al. 2024, arXiv 2402.14740,
    section 3.3.

    >>> leave_one_out([[1.0, 0.0, None, 0.5]])
    [[0.75, -0.75, None, 0.0]]
    """
    centred_PG = [_centred(rewards_G) for rewards_G in rewards_PG]
    counts_P = [sum(value is not None for value in centred_G) for centred_G in centred_PG]
    return [
        [None if value is None else value * count / (count - 1) for value in centred_G]
        for centred_G, count in zip(centred_PG, counts_P, strict=True)
    ]


def batch_normalised(
    rewards_PG: Sequence[Sequence[float | None]], *, group_mean: bool
) -> list[list[float | None]]:
    """Normalise rewards to mean 0 and standard deviation 1 over the whole step; shape as given.

    The step is treated as one large group; with ``group_mean`` every group is centred first. The
    deviation is unbiased and at least `FLOOR`. Source: Hu et al. 2025, arXiv 2501.03262.

    >>> batch_normalised([[1.0], [0.0], [None], [2.0]], group_mean=False)
    [[0.0], [-1.0], [None], [1.0]]
    """
    if group_mean:
        return group_relative(rewards_PG, "batch")
    (flat,) = group_relative([[r for rewards_G in rewards_PG for r in rewards_G]], "batch")
    advantages = iter(flat)
    return [[next(advantages) for _ in rewards_G] for rewards_G in rewards_PG]


def has_signal(advantages_G: Sequence[float | None]) -> bool:
    """Tell if any completion of the group moves the policy."""
    return any(a is not None and abs(a) > 0 for a in advantages_G)


def _centred(rewards_G: Sequence[float | None]) -> list[float | None]:
    scored = [r for r in rewards_G if r is not None]
    if len(scored) < 2:
        return [None] * len(rewards_G)
    # The mean is taken relative to the first reward, so that equal rewards give exactly zero.
    first = scored[0]
    mean = sum(r - first for r in scored) / len(scored)
    return [None if r is None else r - first - mean for r in rewards_G]


def _spread(centred: Sequence[float | None]) -> float:
    """Compute the unbiased standard deviation of centred values; 0 for fewer than two."""
    values = [value for value in centred if value is not None]
    return sqrt(sum(v * v for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0


def _divided(centred_G: Sequence[float | None], by: float) -> list[float | None]:
    return [None if value is None else value / by for value in centred_G]

"""Advantages: how much better a completion is than its peers. Pure functions of plain numbers.

Legend: ``_G`` completions of one prompt. None stands for a completion without a usable reward: it is
left out of every mean and gets no advantage.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from rollouts.types import Score

EPS = 1e-4
"""Added to the standard deviation (reward units), as TRL does, so that parity is exact."""


def group_relative(
    rewards_G: Sequence[float | None], *, std: bool, eps: float = EPS
) -> list[float | None]:
    """``r_i - mean(r)``, divided by the group's unbiased standard deviation when ``std``.

    Source: arXiv 2402.03300 section 4.1 (with std), arXiv 2503.20783 (without). Fewer than two
    scored completions leave nothing to compare: all None.

    >>> group_relative([1.0, 0.0, None, 0.5], std=False)
    [0.5, -0.5, None, 0.0]
    """
    scored = [r for r in rewards_G if r is not None]
    if len(scored) < 2:
        return [None] * len(rewards_G)
    mean = sum(scored) / len(scored)
    spread = sqrt(sum((r - mean) ** 2 for r in scored) / (len(scored) - 1))
    scale = spread + eps if std else 1.0
    return [None if r is None else (r - mean) / scale for r in rewards_G]


def group_relative_by_part(
    scores_G: Sequence[Score], *, std: bool, eps: float = EPS
) -> list[float | None]:
    """Group-relative advantage of every reward part on its own, weighted and summed.

    Normalising the sum lets the part with the largest spread set the scale; normalising the parts
    gives each its declared weight whatever its spread. A part that abstained adds nothing.
    """
    usable = [s.status == "scored" for s in scores_G]
    if sum(usable) < 2:
        return [None] * len(scores_G)
    totals = [0.0] * len(scores_G)
    for part in sorted({name for s in scores_G for name in s.parts}):
        values = [s.parts.get(part) if ok else None for s, ok in zip(scores_G, usable, strict=True)]
        weight = next(s.weights[part] for s in scores_G if part in s.weights)
        for i, advantage in enumerate(group_relative(values, std=std, eps=eps)):
            totals[i] += 0.0 if advantage is None else weight * advantage
    return [total if ok else None for total, ok in zip(totals, usable, strict=True)]


def has_signal(advantages_G: Sequence[float | None]) -> bool:
    """Whether any completion of the group moves the policy."""
    return any(a is not None and abs(a) > 0 for a in advantages_G)

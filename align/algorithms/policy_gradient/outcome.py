"""Bases of the algorithms that give a whole completion, and so each of its tokens, one advantage."""

from __future__ import annotations

from collections.abc import Sequence

from align.algorithms.base import PolicyGradient
from align.algorithms.policy_gradient.advantages import (
    Scale,
    group_relative,
    group_relative_by_part,
)
from rollouts.types import ScoredGroup


class OutcomeGradient(PolicyGradient):
    """Base of algorithms whose completions have one advantage, shared by all their tokens."""

    def moves(self, advantage: float) -> bool:
        return advantage != 0


class GroupRelative(OutcomeGradient):
    """Base of algorithms with GRPO's advantages, whatever their loss."""

    scale: Scale = "group"
    """Divisor of the advantages: the standard deviation of the ``group``, that of all centred rewards of
    the ``batch``, which does not scale up a nearly solved group, or ``none``, as in Dr. GRPO."""
    by_part: bool = False
    """Centre and scale every reward part on its own and then add them by weight, so that a part with a
    wide spread cannot drown another (Liu et al. 2026, arXiv 2601.05242)."""

    def check(self, group_size: int, where: str) -> None:
        need_groups(self.name, group_size, where)

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[list[float | None]]:
        if self.by_part:
            return group_relative_by_part([g.scores_G for g in groups], self.scale)
        return group_relative(values_of(groups), self.scale)


def need_groups(name: str, group_size: int, where: str) -> None:
    """Raise ValueError if a prompt has a single completion, so that there is nothing to compare."""
    if group_size < 2:
        raise ValueError(
            f"{where}.sampling.group_size: {name} compares completions of one prompt, got group_size "
            f"{group_size}; use at least 2"
        )


def values_of(groups: Sequence[ScoredGroup]) -> list[list[float | None]]:
    """Return the rubric's value of every completion of each group; None for those without a number."""
    return [[score.value for score in scored.scores_G] for scored in groups]

"""Algorithms whose advantage belongs to a whole completion: every token of it carries the same number."""

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
    """Algorithms that give a completion one advantage, which all its tokens share."""

    def moves(self, advantage: float) -> bool:
        return advantage != 0


class GroupRelative(OutcomeGradient):
    """Algorithms whose advantages are GRPO's, whatever their loss."""

    scale: Scale = "group"
    """What advantages are divided by: the standard deviation of the ``group``, that of all centred
    rewards of the ``batch`` (a nearly solved group is then not blown up), or ``none``: Dr. GRPO."""
    by_part: bool = False
    """Centre and scale every reward part on its own, then add by weight: a part with a wide spread
    cannot drown another (Liu et al. 2026, arXiv 2601.05242)."""

    def check(self, group_size: int, where: str) -> None:
        need_groups(self.name, group_size, where)

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[list[float | None]]:
        if self.by_part:
            return group_relative_by_part([g.scores_G for g in groups], self.scale)
        return group_relative(values_of(groups), self.scale)


def need_groups(name: str, group_size: int, where: str) -> None:
    """Raise ValueError where a prompt has a single completion, and nothing to compare it with."""
    if group_size < 2:
        raise ValueError(
            f"{where}.sampling.group_size: {name} compares completions of one prompt, got group_size "
            f"{group_size}; use at least 2"
        )


def values_of(groups: Sequence[ScoredGroup]) -> list[list[float | None]]:
    """What the rubric said of every completion; None where it has no number."""
    return [[score.value for score in scored.scores_G] for scored in groups]

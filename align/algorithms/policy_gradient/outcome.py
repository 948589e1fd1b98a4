"""Bases of the algorithms that give a whole completion, and so each of its tokens, one advantage.

With ``turn_rewards`` the turns of an episode get advantages of their own where the loss has a ratio for
each token; see `align.algorithms.policy_gradient.turns`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from align.algorithms.base import PolicyGradient
from align.algorithms.policy_gradient.advantages import (
    Scale,
    group_relative,
    group_relative_by_part,
)
from align.algorithms.policy_gradient.turns import with_turn_advantages
from align.algorithms.rows import Batch
from rollouts.types import ScoredGroup


class OutcomeGradient(PolicyGradient):
    """Base of algorithms whose completions have one advantage, shared by all their tokens."""

    def moves(self, advantage: float) -> bool:
        return advantage != 0

    def compare(self, rewards_PG: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
        """Compare the rewards of each group's completions, as `advantages` does with their scores."""
        raise NotImplementedError

    def rows(self, groups: Sequence[ScoredGroup]) -> Batch:
        batch = super().rows(groups)
        return with_turn_advantages(batch, groups, self.compare) if self._by_turn else batch


class GroupRelative(OutcomeGradient):
    """Base of algorithms with GRPO's advantages, whatever their loss."""

    scale: Scale = "group"
    """Divisor of the advantages: the standard deviation of the ``group``, that of all centred rewards of
    the ``batch``, which does not scale up a nearly solved group, or ``none``, as in Dr. GRPO."""
    by_part: bool = False
    """Centre and scale every reward part on its own and then add them by weight, so that a part with a
    wide spread cannot drown another (Liu et al. 2026, arXiv 2601.05242)."""

    credits_turns: ClassVar[bool] = True

    def check(self, group_size: int, where: str) -> None:
        need_groups(self.name, group_size, where)

    def compare(self, rewards_PG: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
        return group_relative(rewards_PG, self.scale)

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[list[float | None]]:
        if self.by_part:
            return group_relative_by_part([g.scores_G for g in groups], self.scale)
        return self.compare(values_of(groups))


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

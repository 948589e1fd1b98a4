"""REINFORCE++: PPO's clip on advantages normalised over the whole step, without a critic.

    A_i = (r_i - b_i - mean_step(r - b)) / max(std_step(r - b), floor)
    L   = -1/N sum_t min(rho_t A, clip(rho_t, 1 - clip_low, 1 + clip_high) A)

``b`` is 0, or with ``group_baseline`` the mean of the completion's group: REINFORCE++-baseline. Source:
Hu et al. 2025, arXiv 2501.03262. For the KL that the paper subtracts from the reward use the anchor
estimator ``k1``, for that of the baseline variant ``k2``.

Assumes rewards that compare between prompts, or a ``group_baseline``; without one, a single completion per
prompt is enough. Mean and deviation are taken over completions, so a long answer counts once. A step of
equal rewards has zero advantages. The spread is at least
`align.algorithms.policy_gradient.advantages.FLOOR`: the paper divides by any spread, however small, which
gives noise full-sized advantages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from align.algorithms.base import LossAndMetrics, PolicyInputs
from align.algorithms.policy_gradient.advantages import batch_normalised
from align.algorithms.policy_gradient.clipping import clipped_mean
from align.algorithms.policy_gradient.outcome import OutcomeGradient, need_groups, values_of
from align.algorithms.rows import Totals
from rollouts.types import ScoredGroup


class ReinforcePP(OutcomeGradient):
    """REINFORCE++, and REINFORCE++-baseline."""

    name: Literal["reinforce_pp"] = "reinforce_pp"
    group_baseline: bool = False
    """Subtract the mean of the completion's group first. Suits prompts of uneven difficulty."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Distance below 1 beyond which a ratio has no gradient."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """Distance above 1 beyond which a ratio has no gradient."""

    credits_turns: ClassVar[bool] = True

    def check(self, group_size: int, where: str) -> None:
        if self.group_baseline:
            need_groups(f"{self.name} with group_baseline", group_size, where)

    def compare(self, rewards_PG: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
        return batch_normalised(rewards_PG, group_mean=self.group_baseline)

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[list[float | None]]:
        return self.compare(values_of(groups))

    def loss(self, inputs: PolicyInputs, totals: Totals) -> LossAndMetrics:
        return clipped_mean(inputs, self.clip_low, self.clip_high, totals.tokens)

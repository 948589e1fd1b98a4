"""RLOO: REINFORCE with a leave-one-out baseline, where an answer is one action.

    A_i = r_i - mean_{j != i} r_j
    L   = -1/S sum_y min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)
    rho = exp(sum_t (logprob_t - start_logprob_t))

``S`` counts the completions of the step. Source: Ahmadian et al. 2024, arXiv 2402.14740, section 3.3. The
paper's REINFORCE is the gradient at ``rho = 1``, that is with one update per batch; the clip bounds further
ones, as in TRL. For the paper's KL in the reward use the anchor estimator ``k1``: a completion's reward is
then less by ``beta`` times the sum of its log ratios, so this KL is a mean over completions.

Assumes rewards of one scale: nothing divides by their spread. The baseline does not see the completion it
is for, so the gradient has no bias. A completion's weight grows with its length, as its gradient is a sum
over tokens; so does the spread of ``rho``. Importance weights of tokens enter as their mean over the
completion: ``importance.level: sequence`` is the exact one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from align.algorithms.base import LossAndMetrics, PolicyInputs
from align.algorithms.policy_gradient.advantages import leave_one_out
from align.algorithms.policy_gradient.clipping import by_sequence, clipped_mean
from align.algorithms.policy_gradient.outcome import OutcomeGradient, need_groups, values_of
from align.algorithms.rows import Totals
from rollouts.types import ScoredGroup


class RLOO(OutcomeGradient):
    """REINFORCE leave-one-out."""

    in_reward_over: ClassVar[Literal["tokens", "completions"]] = "completions"

    name: Literal["rloo"] = "rloo"
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """How far the ratio may fall below 1 and still be learned from."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """How far it may rise above 1."""

    def check(self, group_size: int, where: str) -> None:
        need_groups(self.name, group_size, where)

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[list[float | None]]:
        return leave_one_out(values_of(groups))

    def loss(self, inputs: PolicyInputs, totals: Totals) -> LossAndMetrics:
        sequences = by_sequence(inputs, mean=False)
        return clipped_mean(sequences, self.clip_low, self.clip_high, totals.sequences)

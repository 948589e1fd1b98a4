"""RLOO: REINFORCE with a leave-one-out baseline, which treats a whole answer as one action.

    A_i = r_i - mean_{j != i} r_j
    L   = -1/S sum_y min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)
    rho = exp(sum_t (logprob_t - start_logprob_t))

``S`` counts the completions of the step. Source: Ahmadian et al. 2024, arXiv 2402.14740, section 3.3. The
paper's REINFORCE is the gradient at ``rho = 1``, that is with one update per batch; the clip bounds further
updates, as in TRL. For the paper's KL in the reward use the anchor estimator ``k1``: it subtracts ``beta``
times the sum of a completion's log ratios from its reward, so this KL is a mean over completions.

Assumes rewards of one scale: they are not divided by their spread. A completion's baseline does not depend
on that completion, so the gradient has no bias. A completion's weight grows with its length, since its
gradient is a sum over tokens; so does the spread of ``rho``. Importance weights of tokens enter as their
mean over the completion; ``importance.level: sequence`` gives the exact weight.
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
    """Distance below 1 beyond which a completion's ratio has no gradient."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """Distance above 1 beyond which a completion's ratio has no gradient."""

    def check(self, group_size: int, where: str) -> None:
        need_groups(self.name, group_size, where)

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[list[float | None]]:
        return leave_one_out(values_of(groups))

    def loss(self, inputs: PolicyInputs, totals: Totals) -> LossAndMetrics:
        sequences = by_sequence(inputs, mean=False)
        return clipped_mean(sequences, self.clip_low, self.clip_high, totals.sequences)

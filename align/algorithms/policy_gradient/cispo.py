"""CISPO: clips the weight of a token's gradient, never the gradient itself.

    L = -1/N sum_t min(rho_t, cap) A logprob_t,  without gradient through min(rho_t, cap)

PPO's clip silences a token that moved too far, often the rare one that a line of thought turns on; here it
keeps a bounded weight. Source: MiniMax 2025, arXiv 2506.13585, eq. 4 and 5; advantages are GRPO's, the mean
is over all tokens. Like the paper it has no lower bound. The paper does not print its upper one: 5 is that
of Khatri et al. 2025, arXiv 2510.13786.

The loss's value is no measure of progress, only its gradient is: on-policy it is that of GRPO. Off-policy,
tokens with a negative advantage go on falling, which GRPO's clip would stop.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from align.algorithms.base import LossAndMetrics, PolicyInputs
from align.algorithms.policy_gradient.clipping import ratios
from align.algorithms.policy_gradient.outcome import GroupRelative
from align.algorithms.rows import Totals


class CISPO(GroupRelative):
    """Clipped importance-sampling-weight policy optimisation."""

    name: Literal["cispo"] = "cispo"
    cap: Annotated[float, Field(gt=1)] = 5.0
    """Largest ratio that a token is weighted with; ``1 + epsilon_high`` in the paper."""

    def loss(self, inputs: PolicyInputs, totals: Totals) -> LossAndMetrics:
        ratio_N = ratios(inputs).detach()
        loss_N = -ratio_N.clamp(max=self.cap) * inputs.advantages_N * inputs.logprobs_N
        if inputs.weights_N is not None:
            loss_N = loss_N * inputs.weights_N
        share = (ratio_N > self.cap).float().sum() / totals.tokens
        return loss_N.sum() / totals.tokens, {"loss/clip_share": share}

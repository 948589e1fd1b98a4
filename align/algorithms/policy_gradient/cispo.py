"""CISPO, which clips the weight of a token's gradient but never drops the gradient itself.

    L = -1/N sum_t min(rho_t, cap) A logprob_t,  without gradient through min(rho_t, cap)

PPO's clip gives no gradient to a token that moved too far, often a rare one on which the reasoning
depends; here such a token keeps a bounded weight. Source: MiniMax 2025, arXiv 2506.13585, eq. 4 and 5.
Advantages are GRPO's and the mean is over all tokens. As in the paper there is no lower bound. The paper
does not give its upper bound: the default of 5 is that of Khatri et al. 2025, arXiv 2510.13786.

Only the gradient of this loss has a meaning, its value has none. On-policy the gradient is GRPO's.
Off-policy, tokens with a negative advantage keep losing probability where GRPO's clip would stop them.
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
    """Largest ratio that a token is weighted by; ``1 + epsilon_high`` in the paper."""

    def loss(self, inputs: PolicyInputs, totals: Totals) -> LossAndMetrics:
        ratio_N = ratios(inputs).detach()
        loss_N = -ratio_N.clamp(max=self.cap) * inputs.advantages_N * inputs.logprobs_N
        if inputs.weights_N is not None:
            loss_N = loss_N * inputs.weights_N
        share = (ratio_N > self.cap).float().sum() / totals.tokens
        return loss_N.sum() / totals.tokens, {"loss/clip_share": share}

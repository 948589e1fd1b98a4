"""KL toward earlier snapshots: the penalty of one anchor, and the weight that steers it toward a target."""

from __future__ import annotations

from math import exp, isfinite

from torch import Tensor

from align.algorithms import divergences as kl
from align.algorithms.micro_batch import MicroBatch
from align.algorithms.outputs import Outputs
from align.config.campaign import AnchorConfig


class BetaController:
    """Steers one anchor's weight so that its KL stays near a target.

    ``log beta += rate * clip(kl / target - 1, -1, 1)`` after every step. Source: the adaptive KL
    coefficient of Ziegler et al. 2019, arXiv 1909.08593, section 2.2, in log space so that beta stays
    positive. Without a target beta is constant.
    """

    def __init__(self, config: AnchorConfig) -> None:
        self._config, self.beta = config, config.beta

    def observe(self, kl_per_token: float) -> None:
        """Take note of this step's measured KL, in nats per token."""
        # A step that was skipped measured nothing: one NaN would stay in beta for good.
        if self._config.target is None or not isfinite(kl_per_token):
            return
        error = min(max(kl_per_token / self._config.target - 1.0, -1.0), 1.0)
        low, high = self._config.bounds
        self.beta = min(max(self.beta * exp(self._config.rate * error), low), high)


def penalty_of(
    estimator: str,
    own: Outputs,
    anchor: Outputs,
    micro: MicroBatch,
    weights_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Summed penalty with the estimator's gradient, and summed KL to report (detached).

    Args:
        weights_N: importance of every token, for samples of other weights than the policy's; None: all 1.
    """
    if estimator in kl.VOCABULARY_ESTIMATORS:
        total_N = own.divergence(anchor, kl.VOCABULARY_ESTIMATORS[estimator])
        total = (total_N if weights_N is None else total_N * weights_N).sum()
        return total, total.detach()
    meter_N = kl.k3(own.logprobs_N.detach(), anchor.logprobs_N)
    if estimator == "k1":
        penalty_N = kl.k1_in_reward(own.logprobs_N, anchor.logprobs_N, micro.rows_N)
    else:
        penalty_N = kl.TOKEN_ESTIMATORS[estimator](own.logprobs_N, anchor.logprobs_N)
    if weights_N is not None:
        penalty_N, meter_N = penalty_N * weights_N, meter_N * weights_N
    return penalty_N.sum(), meter_N.sum()

"""The clipped surrogate that PPO brought and its descendants share. Pure functions of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.learner.losses.base import PolicyInputs

if TYPE_CHECKING:
    from torch import Tensor


def clipped_surrogate(inputs: PolicyInputs, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Per-token loss ``-w min(rho A, clip(rho, 1 - low, 1 + high) A)``, and where the clip acted.

    ``rho = exp(logprob - start_logprob)``; ``w`` is the importance weight. Source: Schulman et al. 2017,
    arXiv 1707.06347, eq. 7; unequal clips: Yu et al. 2025, arXiv 2503.14476, eq. 10.
    """
    ratio_N = (inputs.logprobs_N - inputs.start_logprobs_N).exp()
    clipped_N = ratio_N.clamp(1 - low, 1 + high)
    surrogate_N = (ratio_N * inputs.advantages_N).minimum(clipped_N * inputs.advantages_N)
    if inputs.weights_N is not None:
        surrogate_N = surrogate_N * inputs.weights_N
    return -surrogate_N, (ratio_N != clipped_N).detach()

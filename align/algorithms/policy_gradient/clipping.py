"""The clipped surrogate that PPO introduced and later algorithms share, over tokens or sequences.

All are pure functions of tensors. A loss over whole sequences first joins each completion's tokens into
one entry with `by_sequence`; the other functions then take completions as they take tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from align.algorithms.base import LossAndMetrics, PolicyInputs

if TYPE_CHECKING:
    from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Bound that larger log ratios are clipped to, without gradient: an overflow would spoil the step."""


def ratios(inputs: PolicyInputs) -> Tensor:
    """Compute ``rho = exp(logprob - start_logprob)`` with gradient; shape ``N``."""
    return (inputs.logprobs_N - inputs.start_logprobs_N).clamp(max=MAX_LOG_RATIO).exp()


def clipped_surrogate(inputs: PolicyInputs, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Compute ``-w min(rho A, clip(rho, 1 - low, 1 + high) A)`` per token, and a mask of the clipped.

    ``rho = exp(logprob - start_logprob)``; ``w`` is the importance weight. Both results have shape ``N``.
    Source: Schulman et al. 2017,
    arXiv 1707.06347, eq. 7; unequal clips: Yu et al. 2025, arXiv 2503.14476, eq. 10.
    """
    ratio_N = ratios(inputs)
    clipped_N = ratio_N.clamp(1 - low, 1 + high)
    surrogate_N = (ratio_N * inputs.advantages_N).minimum(clipped_N * inputs.advantages_N)
    if inputs.weights_N is not None:
        surrogate_N = surrogate_N * inputs.weights_N
    return -surrogate_N, (ratio_N != clipped_N).detach()


def clipped_mean(inputs: PolicyInputs, low: float, high: float, count: int) -> LossAndMetrics:
    """Compute this micro-batch's part of the mean clipped surrogate, and of the share clipped.

    Args:
        count: tokens, or sequences after `by_sequence`, of the whole step.
    """
    loss_N, clipped_N = clipped_surrogate(inputs, low, high)
    return loss_N.sum() / count, {"loss/clip_share": clipped_N.float().sum() / count}


def clipped_mean_of_means(
    inputs: PolicyInputs, low: float, high: float, count: int
) -> LossAndMetrics:
    """Compute `clipped_mean` over completions, each with the mean over its own tokens.

    Args:
        count: completions of the whole step that teach.
    """
    _, entry_N, counts_S = inputs.rows_N.unique_consecutive(  # type: ignore[no-untyped-call]
        return_inverse=True, return_counts=True
    )
    share_N = 1.0 / (counts_S[entry_N] * count)
    loss_N, clipped_N = clipped_surrogate(inputs, low, high)
    return (loss_N * share_N).sum(), {"loss/clip_share": (clipped_N * share_N).sum()}


def by_sequence(inputs: PolicyInputs, *, mean: bool) -> PolicyInputs:
    """Join the tokens of each completion into one entry; ``N`` becomes the completions that teach.

    An entry's log ratio is the sum over its tokens, or their mean. It is stored as the logprob with a
    ``start_logprobs_N`` of zero, which keeps rounding errors small. Advantages and importance weights are
    means over the tokens, so a weight of the whole sequence stays unchanged. For weights of single tokens
    the mean is not the product that importance sampling asks for: it has less variance and more bias.
    """
    rows_S, entry_N, counts_S = inputs.rows_N.unique_consecutive(  # type: ignore[no-untyped-call]
        return_inverse=True, return_counts=True
    )

    def total(values_N: Tensor) -> Tensor:
        return values_N.new_zeros(len(counts_S)).index_add(0, entry_N, values_N)

    log_ratio_S = total(inputs.logprobs_N - inputs.start_logprobs_N)
    weights_N = inputs.weights_N
    return replace(
        inputs,
        logprobs_N=log_ratio_S / counts_S if mean else log_ratio_S,
        start_logprobs_N=log_ratio_S.new_zeros(len(counts_S)),
        advantages_N=total(inputs.advantages_N) / counts_S,
        rows_N=rows_S,
        weights_N=None if weights_N is None else total(weights_N) / counts_S,
    )

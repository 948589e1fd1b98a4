"""The clipped surrogate that PPO brought and its descendants share, over tokens or over whole sequences.

Pure functions of tensors. A sequence is one long token: `by_sequence` joins a completion's tokens to one
entry, and everything else here stays as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from align.algorithms.base import LossAndMetrics, PolicyInputs

if TYPE_CHECKING:
    from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Larger log ratios count as this, without gradient: an overflow would spoil the whole step."""


def ratios(inputs: PolicyInputs) -> Tensor:
    """``rho = exp(logprob - start_logprob)``, with gradient."""
    return (inputs.logprobs_N - inputs.start_logprobs_N).clamp(max=MAX_LOG_RATIO).exp()


def clipped_surrogate(inputs: PolicyInputs, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Per-token loss ``-w min(rho A, clip(rho, 1 - low, 1 + high) A)``, and where the clip acted.

    ``rho = exp(logprob - start_logprob)``; ``w`` is the importance weight. Source: Schulman et al. 2017,
    arXiv 1707.06347, eq. 7; unequal clips: Yu et al. 2025, arXiv 2503.14476, eq. 10.
    """
    ratio_N = ratios(inputs)
    clipped_N = ratio_N.clamp(1 - low, 1 + high)
    surrogate_N = (ratio_N * inputs.advantages_N).minimum(clipped_N * inputs.advantages_N)
    if inputs.weights_N is not None:
        surrogate_N = surrogate_N * inputs.weights_N
    return -surrogate_N, (ratio_N != clipped_N).detach()


def clipped_mean(inputs: PolicyInputs, low: float, high: float, count: int) -> LossAndMetrics:
    """This micro-batch's part of the mean clipped surrogate, and of the share that the clip acted on.

    Args:
        count: tokens, or sequences after `by_sequence`, of the whole step.
    """
    loss_N, clipped_N = clipped_surrogate(inputs, low, high)
    return loss_N.sum() / count, {"loss/clip_share": clipped_N.float().sum() / count}


def clipped_mean_of_means(
    inputs: PolicyInputs, low: float, high: float, count: int
) -> LossAndMetrics:
    """As `clipped_mean`, of the completions' own means over their tokens.

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
    """One entry per completion in place of one per token; ``N`` becomes the completions that teach.

    Its log ratio is the sum over the tokens, or their mean, taken before rounding can build up: the new
    ``start_logprobs_N`` are zero. Advantages and importance weights are means over the tokens, so a
    weight of the whole sequence stays what it is. Weights of single tokens do not multiply to the
    sequence's: their mean has less variance and more bias.
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

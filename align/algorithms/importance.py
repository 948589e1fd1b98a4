"""Importance weights, which correct for samples that somewhat older weights than the learner's drew.

    token     w_t = exp(start_t - sampler_t)
    sequence  w   = exp(sum_t (start_t - sampler_t)), the same for every token of a row

``truncate`` takes ``min(w, cap)``; ``mask`` gives weight 0 to tokens above the cap or below ``1 / cap``.
``start`` are the learner's logprobs when the batch came, ``sampler`` those of the engine that sampled;
if both had the same weights, the ratio is 1 up to rounding. Source: truncation, Ionides 2008 and Yao et
al. 2025 ("Your efficient RL framework secretly brings you off-policy RL training"); masking, Team et al.
2025, arXiv 2510.18855.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from align.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor


class ImportanceConfig(Settings):
    """Correction for samples of older weights."""

    level: Literal["token", "sequence", "none"] = "token"
    """Unit of a ratio: each token or the whole completion; ``none`` leaves samples uncorrected."""
    limit: Literal["truncate", "mask"] = "truncate"
    """Treatment of ratios beyond the cap: ``truncate`` clips them to it, ``mask`` drops the token."""
    cap: Annotated[float, Field(gt=1)] = 2.0
    """Largest weight."""


def importance_weights(log_ratio_N: Tensor, rows_N: Tensor, config: ImportanceConfig) -> Tensor:
    """Compute the weight of every token, without gradient; shape ``N``. The module has the formula.

    Args:
        log_ratio_N: ``start - sampler``, nats.
        rows_N: completion index of each token.
    """
    difference_N = log_ratio_N.detach()
    if config.level == "sequence":
        sums_B = difference_N.new_zeros(int(rows_N.max()) + 1).index_add(0, rows_N, difference_N)
        difference_N = sums_B[rows_N]
    weights_N = difference_N.exp()
    if config.limit == "truncate":
        return weights_N.clamp(max=config.cap)
    keep_N = (weights_N <= config.cap) & (weights_N >= 1 / config.cap)
    return weights_N.masked_fill(~keep_N, 0.0)

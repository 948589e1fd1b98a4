"""Dr. GRPO: GRPO done right, without its biases toward long wrong answers and toward hard or easy prompts.

    A_i = r_i - mean_G r
    L   = -1/(S * length) sum_t min(rho_t A, clip(rho_t, 1 - clip_low, 1 + clip_high) A)

``S`` counts the completions of the step and ``length`` is a constant, so a token weighs the same in every
answer and at every step; a mean over tokens gives it less weight in a step of long answers. Source:
Liu et al. 2025, arXiv 2503.20783, section 3.2.

Assumes rewards of one scale: they are not divided by their spread, so the learning rate has to fit it. The
loss is GRPO's times (mean length / ``length``), which is small for short answers and a large ``length``.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from align.algorithms.base import LossAndMetrics, PolicyInputs
from align.algorithms.policy_gradient.clipping import clipped_mean
from align.algorithms.policy_gradient.outcome import GroupRelative
from align.algorithms.rows import Totals


class DrGRPO(GroupRelative):
    """GRPO with unscaled advantages and a loss divided by a constant length."""

    name: Literal["dr_grpo"] = "dr_grpo"
    scale: Literal["none"] = "none"
    """Always none: dividing by a group's spread favours prompts that are nearly always or never solved."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Distance below 1 beyond which a ratio has no gradient."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """Distance above 1 beyond which a ratio has no gradient."""
    length: Annotated[int, Field(ge=1)] | None = None
    """Tokens that each completion counts for in the mean; None: ``sampling.max_tokens``."""

    def for_round(self, max_tokens: int) -> Self:
        return self if self.length else self.model_copy(update={"length": max_tokens})

    def loss(self, inputs: PolicyInputs, totals: Totals) -> LossAndMetrics:
        if self.length is None:
            raise ValueError("dr_grpo: length is None; set it, or call for_round(max_tokens)")
        mean, metrics = clipped_mean(inputs, self.clip_low, self.clip_high, totals.tokens)
        return mean * (totals.tokens / (totals.sequences * self.length)), metrics

"""GRPO: group-relative policy optimisation, on-policy or nearly so.

    A_i = (r_i - mean_G r) / (std_G r + eps)
    L   = -1/N sum_t min(rho_t A, clip(rho_t, 1 - clip_low, 1 + clip_high) A)
    rho = exp(logprob_t - start_logprob_t)

Source: Shao et al. 2024, arXiv 2402.03300, eq. 3. There every completion counts the same, however long
(``mean: completions``); the default is the mean over the step's tokens of Yu et al. 2025, arXiv
2503.14476, eq. 12, which does not favour short right answers and long wrong ones. ``scale: none`` is the
advantage of Dr. GRPO (Liu et al. 2025, arXiv 2503.20783), ``clip_high > clip_low`` is DAPO's clip-higher;
`dr_grpo` and `dapo` are the whole methods.
The KL penalty is not here: anchors add it.

Assumes rewards that compare within one prompt. A group of equal rewards has no signal: its advantages are
exactly zero, and it still counts in the token mean. Torch is used through the tensors' own methods, so
reading a campaign file does not import it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from align.algorithms.base import LossAndMetrics, PolicyInputs
from align.algorithms.policy_gradient.clipping import clipped_mean, clipped_mean_of_means
from align.algorithms.policy_gradient.outcome import GroupRelative
from align.algorithms.rows import Totals


class GRPO(GroupRelative):
    """Group-relative policy optimisation."""

    name: Literal["grpo"] = "grpo"
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Distance below 1 beyond which a ratio has no gradient."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """Distance above 1 beyond which a ratio has no gradient."""
    mean: Literal["tokens", "completions"] = "tokens"
    """Unit of equal weight: every token of the step, or every completion with the mean over its tokens."""

    def loss(self, inputs: PolicyInputs, totals: Totals) -> LossAndMetrics:
        if self.mean == "completions":
            return clipped_mean_of_means(inputs, self.clip_low, self.clip_high, totals.sequences)
        return clipped_mean(inputs, self.clip_low, self.clip_high, totals.tokens)

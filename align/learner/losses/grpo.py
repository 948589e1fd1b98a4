"""GRPO: group-relative policy optimisation, on-policy or nearly so.

    A_i = (r_i - mean_G r) / (std_G r + eps)
    L   = -1/N sum_t min(rho_t A, clip(rho_t, 1 - clip_low, 1 + clip_high) A)
    rho = exp(logprob_t - start_logprob_t)

Source: Shao et al. 2024, arXiv 2402.03300, eq. 3; token-mean over the step as in Yu et al. 2025,
arXiv 2503.14476, eq. 10. ``scale: none`` is the advantage of Dr. GRPO (Liu et al. 2025, arXiv
2503.20783), ``clip_high > clip_low`` is clip-higher. The KL penalty is not here: anchors add it.

Assumes rewards that compare within one prompt. A group whose rewards are all equal has no signal:
its advantages are exactly zero, and it still counts in the token mean. Torch is used through the
tensors' own methods, so reading a campaign file does not import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from align.learner.advantages import Scale, group_relative, group_relative_by_part
from align.learner.losses.base import LossAndMetrics, PolicyGradient, PolicyInputs
from align.learner.losses.clipping import clipped_surrogate
from align.learner.rows import Totals
from rollouts.types import ScoredGroup


class GRPO(PolicyGradient):
    """Group-relative policy optimisation."""

    name: Literal["grpo"] = "grpo"
    scale: Scale = "group"
    """What advantages are divided by: the standard deviation of the ``group``, that of all centred
    rewards of the ``batch`` (a nearly solved group is then not blown up), or ``none``: Dr. GRPO."""
    by_part: bool = False
    """Centre and scale every reward part on its own, then add by weight: a part with a wide spread
    cannot drown another (Liu et al. 2026, arXiv 2601.05242)."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    clip_high: Annotated[float, Field(gt=0)] = 0.2

    def check(self, group_size: int, where: str) -> None:
        if group_size < 2:
            raise ValueError(
                f"{where}.sampling.group_size: grpo compares completions of one prompt, got group_size "
                f"{group_size}; use at least 2"
            )

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[list[float | None]]:
        if self.by_part:
            return group_relative_by_part([g.scores_G for g in groups], self.scale)
        values = [[score.value for score in group.scores_G] for group in groups]
        return group_relative(values, self.scale)

    def loss(self, inputs: PolicyInputs, totals: Totals) -> LossAndMetrics:
        loss_N, clipped_N = clipped_surrogate(inputs, self.clip_low, self.clip_high)
        share = clipped_N.float().sum() / totals.tokens
        return loss_N.sum() / totals.tokens, {"loss/clip_share": share}

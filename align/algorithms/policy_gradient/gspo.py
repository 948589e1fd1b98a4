"""GSPO: group sequence policy optimisation, with one ratio per completion.

    s = exp(1/|y| sum_t (logprob_t - start_logprob_t))
    L = -1/S sum_y min(s A, clip(s, 1 - clip_low, 1 + clip_high) A)

``S`` counts the completions of the step. A reward belongs to a whole answer, and so does this ratio: single
tokens whose probability jumps, as when experts are routed differently, no longer decide. Source: Zheng et
al. 2025, arXiv 2507.18071, eq. 5 and 7; clips section 5.1. Advantages are GRPO's.

Assumes one reward per completion. The ratio is a geometric mean, which stays much closer to 1 than the
ratio of a token: clips of GRPO's size would never act. With several updates per batch expect far larger
clip shares than GRPO's. Every completion weighs the same whatever its length. Importance weights of tokens
enter as their mean over the completion.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from align.algorithms.base import LossAndMetrics, PolicyInputs
from align.algorithms.policy_gradient.clipping import by_sequence, clipped_mean
from align.algorithms.policy_gradient.outcome import GroupRelative
from align.algorithms.rows import Totals


class GSPO(GroupRelative):
    """Group sequence policy optimisation."""

    name: Literal["gspo"] = "gspo"
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 3e-4
    """Distance below 1 beyond which a completion's ratio has no gradient."""
    clip_high: Annotated[float, Field(gt=0)] = 4e-4
    """Distance above 1 beyond which a completion's ratio has no gradient."""

    credits_turns: ClassVar[bool] = False

    def loss(self, inputs: PolicyInputs, totals: Totals) -> LossAndMetrics:
        sequences = by_sequence(inputs, mean=True)
        return clipped_mean(sequences, self.clip_low, self.clip_high, totals.sequences)

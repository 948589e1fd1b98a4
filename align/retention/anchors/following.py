"""Anchor that moves after the policy within its round.

    anchor <- anchor + share * (policy - anchor)    at every `every`-th step, and where KL passes `above`

With a share of 1 this is the hard reset of the reference every R steps, as in ProRL, Liu et al. 2025, arXiv
2505.24864, section 3; with .6 the soft update of TR-DPO, Gorbatovski et al. 2024, arXiv 2404.09656,
equation 3, for a KL term; at every step with a small share the moving average of WARP, Rame et al. 2024,
arXiv 2406.16768, section 3.1. Several with different shares are the cheap form of a policy consolidation
cascade, Kaplanis et al. 2019, arXiv 1902.00255.

The anchor is a copy of the policy's full weights in float32. A checkpoint holds it, and no snapshot does:
the next round begins with its parent again.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from torch import Tensor

from align.algorithms.micro_batch import MicroBatch
from align.algorithms.outputs import Outputs
from align.config.learning import FollowConfig
from align.learner.model.policy import Policy
from align.learner.teachers.slow_teacher import SlowTeacher


class FollowingAnchor:
    """Moving copy of the policy's weights.

    Args:
        config: when and how far it moves.
        model: weights that it begins with, of the policy's architecture.
    """

    def __init__(self, config: FollowConfig, model: Any, policy: Policy) -> None:
        self._config = config
        self._copy = SlowTeacher(model, policy, config.share)

    def outputs(self, micro: MicroBatch, temperature: float) -> Outputs:
        """Run the anchor over the completion tokens, without gradient."""
        return self._copy.outputs(micro, temperature)

    def after_step(self, step: int, kl_per_token: float | None) -> None:
        """Move the anchor where that is due after the step with this number, counted from 1."""
        above = self._config.above
        measured = kl_per_token is not None and isfinite(kl_per_token)
        spike = above is not None and measured and (kl_per_token or 0.0) > above
        if spike or step % self._config.every == 0:
            self._copy.move()

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the anchor's weights by name."""
        return self._copy.named_tensors()

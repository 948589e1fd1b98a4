"""Great arc between the changes that two snapshots made to the base, tensor by tensor.

    slerp(u, v, a) = sin((1 - a) w) / sin(w) * u  +  sin(a w) / sin(w) * v        w: angle of u and v

    theta = theta_base + slerp(theta_to - theta_base, theta_trained - theta_base, a)

Shoemake 1985; for changes of weights Rame et al. 2024 (WARP), arXiv 2406.16768, equation 5. A mean of two
changes at right angles is shorter than both, by the root of 2; the arc keeps their length. Where the angle
is undefined or a multiple of pi the straight line takes its place: a change that is zero, as in a first
round, and two that point the same way or opposite ways.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from align.config.mergers.settings import SlerpMergeConfig
from align.learner.model.blend import between
from align.retention.mergers.base import WeightStack

SMALLEST_SINE = 1e-3
"""Sine of the angle below which the arc is computed as a straight line."""


def slerp(stack: WeightStack, config: SlerpMergeConfig) -> Tensor:
    """Return the base with the point of the arc; the trained weights bit for bit for the share 1."""
    if stack.share == 1.0:
        return stack.trained
    changes = (stack.anchor - stack.base, stack.trained - stack.base)
    return stack.base + arc(*changes, stack.share)


def arc(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Return the point that is ``share`` of the angle from ``start`` to ``end``."""
    lengths = [float(torch.linalg.vector_norm(v, dtype=torch.float64)) for v in (start, end)]
    if not all(lengths):
        return between(start, end, share)
    product = float((start.double() * end.double()).sum())
    angle = math.acos(max(-1.0, min(1.0, product / (lengths[0] * lengths[1]))))
    sine = math.sin(angle)
    if sine < SMALLEST_SINE:
        return between(start, end, share)
    return start * (math.sin((1.0 - share) * angle) / sine) + end * (math.sin(share * angle) / sine)

"""Short-to-long memory: a round's change, denoised, without most of what earlier rounds' changes span.

    d        = theta_trained - theta_parent
    d        <- the leading singular directions of d that hold ``energy`` of its squared singular values
    V        = orthonormal basis of the changes of earlier rounds, each tensor as one long vector
    d        <- d - (1 - keep) * V V^T d
    theta    = theta_parent + d

Li et al. 2025 (LifeAlign), arXiv 2509.17183, and its released code, which applies it to the factors A and B
of an adapter, with energy 0.9 and keep (their gamma) 0.1. Vectors, such as a norm's weights, have no
singular values and are only projected. A change of zero adds nothing to the basis.
"""

from __future__ import annotations

import torch
from torch import Tensor

from align.config.mergers.settings import LifeAlignMergeConfig
from align.retention.mergers.base import WeightStack

RANK_TOLERANCE = 1e-6
"""Singular value, relative to the largest, below which earlier changes span no further direction."""


def lifealign(stack: WeightStack, config: LifeAlignMergeConfig) -> Tensor:
    """Return the parent with the denoised and projected change."""
    parent = stack.past[-1] if stack.past else stack.base
    *earlier, change = stack.changes("parent")
    return parent + projected(denoised(change, config.energy), earlier, config.keep)


def denoised(change: Tensor, energy: float) -> Tensor:
    """Return a matrix cut to its leading singular directions; anything else as it is."""
    if change.dim() != 2 or energy == 1.0:
        return change
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    shares = values.square().cumsum(0) / values.square().sum()
    rank = int((shares < energy).sum()) + 1  # NaN of a zero change is not counted.
    cut: Tensor = (left[:, :rank] * values[:rank]) @ right[:rank]
    return cut


def projected(change: Tensor, earlier: list[Tensor], keep: float) -> Tensor:
    """Return a change with only ``keep`` of its part in the space of earlier changes."""
    if not earlier or keep == 1.0:
        return change
    rows = torch.stack([other.flatten() for other in earlier])
    _, values, right = torch.linalg.svd(rows, full_matrices=False)
    basis = right[values > RANK_TOLERANCE * values.max()]
    flat = change.flatten()
    shared: Tensor = basis.T @ (basis @ flat)
    return (flat - (1.0 - keep) * shared).reshape(change.shape)

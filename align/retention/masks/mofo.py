"""Momentum-filtered optimizer: a step moves only the weights with the largest momentum.

    delta_i <- delta_i    where |m_i| is among the top share of its tensor, else 0

Chen et al. 2024, arXiv 2407.20999, algorithm 1, with every tensor as a block of its own. The momentum m is
Adam's running mean of the gradient, which goes on for all weights, so that another part may move next.
Sharded weights are filtered on each rank by themselves: its part of a tensor is a block then.
"""

from __future__ import annotations

import torch
from torch import Tensor

from align.config.retention.methods import MoFOConfig
from align.learner.penalty import WeightStep
from align.retention.base import RetentionMethod


class MoFO(RetentionMethod[MoFOConfig]):
    """Mask over single weights, chosen anew in every step."""

    follows_steps = True

    def change_update(self, step: WeightStep) -> None:
        for name, momentum in step.momenta.items():
            moves = largest(momentum, self.config.share)
            step.weights[name].copy_(step.weights[name].where(moves, step.before[name]))


def largest(tensor: Tensor, share: float) -> Tensor:
    """Return a mask of the share of a tensor's elements with the largest magnitude, at least one.

    >>> largest(torch.tensor([0.1, -0.4, 0.2, 0.3]), 0.5).tolist()
    [False, True, False, True]
    """
    sizes = tensor.abs().flatten()
    mask = torch.zeros_like(sizes, dtype=torch.bool)
    if len(sizes):
        mask[sizes.topk(max(1, round(share * len(sizes)))).indices] = True
    return mask.view(tensor.shape)

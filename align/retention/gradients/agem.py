"""Averaged gradient episodic memory: a step may not raise the loss on replayed rows, to first order.

    g_ref   gradient of the step's loss on replayed rows (past and general), in passes of their own
    g       gradient on the round's own rows
    g <- g - (g . g_ref) / (g_ref . g_ref) * g_ref        where g . g_ref < 0

Chaudhry et al. 2019, arXiv 1812.00420, equation 11. The loss on replayed rows is what the round gives
them: their KL anchors, and the algorithm's own loss with ``replay.rewards``. It constrains the step and is
no part of it. Where policy and anchor agree, the KL has no gradient, so nothing is held before it drifts.

The condition holds for the gradient that the optimizer gets. Adam divides it by running means of its
squares, so that the step itself may still have a part against g_ref.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, nan, sqrt

import torch
from torch import Tensor

from align.config.retention.methods import AGEMConfig
from align.retention.base import RetentionMethod


class AGEM(RetentionMethod[AGEMConfig]):
    """Projection of the gradient, where it conflicts with that of replayed rows."""

    acts_on_weights = True
    separates_replay = True

    _reference: Mapping[str, Tensor]
    """Gradient of the present step's replayed rows."""
    _removed: float = 0.0
    """Share of the last gradient's length that was taken out."""

    def after_replay(self, gradients: Mapping[str, Tensor]) -> None:
        self._reference = {name: gradient.clone() for name, gradient in gradients.items()}

    @torch.no_grad()
    def project(self, gradients: Mapping[str, Tensor]) -> None:
        reference = self._reference
        sums = self.summed(
            product=sum(float((g * reference[name]).sum()) for name, g in gradients.items()),
            reference=sum(float(g.square().sum()) for g in reference.values()),
            own=sum(float(g.square().sum()) for g in gradients.values()),
        )
        self._removed = 0.0
        if not isfinite(sums["reference"]):
            # Nothing would constrain the step: a gradient that is not finite makes the learner skip it.
            for gradient in gradients.values():
                gradient.fill_(nan)
        elif sums["product"] < 0:
            share = sums["product"] / sums["reference"]
            for name, gradient in gradients.items():
                gradient.sub_(reference[name], alpha=share)
            self._removed = -sums["product"] / sqrt(sums["reference"] * sums["own"])

    def after_step(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        return {f"retention/{self.name}": self._removed}

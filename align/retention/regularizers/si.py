"""Synaptic intelligence: importance from the path that training took.

    omega_i     omega_i <- omega_i - g_i * delta_i                    at every step
    Omega_i     Omega_i <- Omega_i + max(omega_i, 0) / (Delta_i^2 + xi)    after an accepted round
    penalty     c * sum_i Omega_i * (theta_i - theta*_i)^2

Here g is the gradient of the round's loss without penalties on the weights, delta the optimizer's step in
full (clipping, Adam and masks included), and Delta the way from the parent to the accepted weights.
Zenke et al. 2017, arXiv 1703.04200, equations 3 to 5. The sum of ``-g delta`` is the decrease of the loss
that a weight accounts for. A negative one would reward moving away, so it counts as zero. The loss is that
of the round's algorithm and of its KL anchors.

Each round is followed as it trains, and needs no samples afterwards. A candidate that a repair made was
not reached by the path that was followed: it adds no importance, and later rounds go on with that of the
rounds before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from align.algorithms.rows import Row
from align.config.retention.methods import SIConfig
from align.learner.penalty import WeightStep
from align.learner.ranks.sharding import gathered, local
from align.retention.regularizers.quadratic import ImportancePenalty
from align.retention.samples import laid_out


class SI(ImportancePenalty[SIConfig]):
    """Quadratic penalty whose importance is a weight's share in what a round achieved."""

    follows_steps = True

    _path: Mapping[str, Tensor]
    """Decrease of the loss that each weight accounts for so far; this rank's part."""
    _gradients: Mapping[str, Tensor]
    """Gradient of the step that is being taken."""

    @property
    def scale(self) -> float:
        return self.config.strength

    def before_round(self) -> None:
        super().before_round()
        if self._importance is None:
            self._centre = self.view.weights_of(self.view.references.parent)
        self._path = {name: torch.zeros_like(weight) for name, weight in self._centre.items()}

    def after_backward(self, gradients: Mapping[str, Tensor]) -> None:
        self._gradients = {name: gradient.clone() for name, gradient in gradients.items()}

    def after_update(self, step: WeightStep) -> None:
        for name, path in self._path.items():
            path.addcmul_(self._gradients[name], step.weights[name] - step.before[name], value=-1)
        self._gradients = {}

    def tensors(self) -> Mapping[str, Tensor]:
        return self._path

    @torch.no_grad()
    def after_accept(self, rows: Sequence[Row]) -> Mapping[str, Tensor]:
        """Return the running importance, with that of the accepted round added."""
        policy = self.view.policy
        parts = {}
        for name, weight in policy.named_parameters().items():
            way = local(weight.detach()) - self._centre[name]
            parts[name] = self._path[name].clamp(min=0) / (way.square() + self.config.xi)
        importance = self.added_to_earlier(laid_out(policy, parts))
        return gathered(importance.items(), keep=self.view.ranks.rank == 0)

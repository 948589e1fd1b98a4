"""Orthogonal gradient descent: steps leave the log-probability of stored answers alone, to first order.

    v       orthonormal basis of d log pi(y_m|x_m) / d theta over samples m of every accepted policy
    g       <- g - sum_v (g . v) v             before clipping
    delta   <- delta - sum_v (delta . v) v     after the optimizer

Farajtabar et al. 2020, arXiv 1910.07104, algorithm 1, in the variant with the gradient of the answer's own
logit (OGD-GTL), here the log-probability of a whole completion. The paper takes plain gradient steps. Adam
scales each weight by itself, which turns a step out of the subspace, so that the step is projected once
more; projecting the gradient alone would not do, and projecting the step alone would let directions that
are removed afterwards fill the moments and the clipped norm.

Only directions are stored, no samples: one vector as large as the trained weights for each. `most` bounds
them; beyond it the oldest go. With an adapter the weights are its factors A and B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from align.algorithms.rows import Row
from align.config.retention.methods import OGDConfig
from align.learner.penalty import WeightStep
from align.learner.ranks.sharding import gathered, local, part_like
from align.retention.artifact import misfit
from align.retention.base import RetentionMethod
from align.retention.gradients.directions import Directions
from align.retention.samples import laid_out, sample_gradients


class OGD(RetentionMethod[OGDConfig]):
    """Projection of gradients and steps on what earlier rounds' answers do not depend on."""

    acts_on_weights = True
    follows_steps = True

    _directions: Directions
    """Directions that steps may not take; none before the first accepted round."""
    _removed: float = 0.0
    """Share of the last gradient's squared length that was taken out."""

    def before_round(self) -> None:
        """Read the directions of earlier rounds.

        Raises:
            SnapshotError: they were made for other parameters.
        """
        self._directions = Directions([], self._total)
        if self.artifact is None:
            return
        from safetensors.torch import load_file

        policy, stored = self.view.policy, load_file(self.artifact)
        trained = policy.named_parameters()
        for name in sorted(trained.keys() | stored.keys()):
            fits = name in trained and name in stored
            if not fits or stored[name].shape[1:] != trained[name].shape:
                raise misfit(self.artifact, name, self.name, "directions")
        for index in range(len(next(iter(stored.values())))):
            self._directions.vectors.append(
                {
                    name: local(
                        part_like(stored[name][index].to(policy.device), parameter.detach())
                    )
                    for name, parameter in trained.items()
                }
            )

    def project(self, gradients: Mapping[str, Tensor]) -> None:
        removed, square = self._directions.remove_from(gradients)
        self._removed = removed / square if square > 0 else 0.0

    def change_update(self, step: WeightStep) -> None:
        if not self._directions.vectors:
            return
        moves = step.moves()
        self._directions.remove_from(moves)
        step.replace_moves(moves)

    def after_step(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        return {f"retention/{self.name}": self._removed**0.5}

    @torch.no_grad()
    def after_accept(self, rows: Sequence[Row]) -> Mapping[str, Tensor]:
        """Return the newest directions, with those of the accepted policy's answers; one is a row."""
        view = self.view
        zeros = {name: local(tensor) for name, tensor in laid_out(view.policy).items()}
        temperature = view.spec.sampling.temperature
        for gradients in sample_gradients(view.policy, rows, temperature, view.ranks):
            self._directions.add(zeros | gradients)
        whole = [
            gathered(laid_out(view.policy, vector).items(), keep=view.ranks.rank == 0)
            for vector in self._directions.vectors[-self.config.most :]
        ]
        names = whole[0] if whole else {}
        return {name: torch.stack([vector[name] for vector in whole]) for name in names}

    def _total(self, parts: Sequence[float]) -> Sequence[float]:
        """Add up over ranks that have a part of the weights each."""
        return list(self.summed(**{str(index): part for index, part in enumerate(parts)}).values())

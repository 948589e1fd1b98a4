"""InfLoRA: a round's adapter reads inputs that are chosen before it trains, outside of earlier rounds'.

    M       orthonormal basis (in, k) of a layer's inputs over samples of accepted policies
    A       <- top r eigenvectors of (I - M M^T) X^T X (I - M M^T), as rows of length 1/sqrt(3); frozen
    B       trains; a step changes the layer's output by ``s dB A x``, which is zero for x in the span of M

Liang and Li 2024, arXiv 2404.00228, algorithm 1, where A is called B. X has the inputs of the layer over
samples of the policy that the round begins with, so A spans what the new round reads most, as far as no
earlier round read it. The rows have the length of the released code, that of a layer's default
initialization. Where nothing of X is left they are zero, and that part of the layer rests.

M grows after an accepted round as in GPM. The released code also stores the complement of M where that is
smaller, and raises `energy` from task to task, for which the number of rounds would have to be known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from align.algorithms.rows import Row
from align.config.retention.adapters import InfLoRAConfig
from align.learner.model.adapter import factor_names
from align.learner.penalty import WeightStep
from align.retention.base import RetentionMethod
from align.retention.bases import grown, input_covariances, outside, read_columns

INITIAL_LENGTH = 3**-0.5
"""Length of A's rows that a layer's default initialization has in the mean."""
SMALLEST = 1e-9
"""Share of the inputs' squared length below which a direction is rounding."""


class InfLoRA(RetentionMethod[InfLoRAConfig]):
    """Frozen input directions of a round's adapter, outside of what earlier rounds read."""

    acts_on_weights = True
    follows_steps = True

    _names: tuple[str, ...]
    """Names of the factors A, whose inputs are those of their layers."""
    _bases: Mapping[str, Tensor]
    """Orthonormal basis of each layer's earlier inputs, (in, k), by the name of A; empty at first."""
    _free: float = 1.0
    """Share of the squared length of the round's inputs that lies outside of the bases."""

    def before_round(self) -> None:
        """Read the bases of earlier rounds.

        Raises:
            SnapshotError: they were made for other layers.
        """
        policy = self.view.policy
        self._names, self._bases = tuple(a for a, _, _ in factor_names(policy.model)), {}
        if self.artifact is not None:
            trained = policy.named_parameters()
            inputs = {name: trained[name].shape[1] for name in self._names}
            bases = read_columns(self.artifact, inputs, self.name, "input bases")
            self._bases = {name: basis.to(policy.device) for name, basis in bases.items()}

    @torch.no_grad()
    def before_steps(self, rows: Sequence[Row]) -> None:
        """Choose A from what the policy's own samples let the layers read.

        Ranks might compute other eigenvectors, so all of them take the first one's.
        """
        view = self.view
        weights, designed, free = view.policy.named_parameters(), {}, []
        for name, covariance in self._covariances(rows).items():
            values, directions = free_directions(
                self._bases.get(name), covariance, len(weights[name])
            )
            designed[name] = (INITIAL_LENGTH * directions).float().cpu()
            free.append(float(values.sum() / covariance.trace()))
        first = view.ranks.exchange(designed if view.ranks.rank == 0 else {})[0]
        for name, rows_of_a in first.items():
            weights[name].copy_(rows_of_a)
        self._free = sum(free) / len(free)

    def project(self, gradients: Mapping[str, Tensor]) -> None:
        for name in self._names:
            gradients[name].zero_()

    def change_update(self, step: WeightStep) -> None:
        # Weight decay moves weights without a gradient.
        for name in self._names:
            step.weights[name].copy_(step.before[name])

    def after_step(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        return {f"retention/{self.name}": self._free}

    def counters(self) -> Mapping[str, Any]:
        return {f"{self.name}/free": self._free}

    def resume(self, counters: Mapping[str, Any]) -> None:
        self._free = counters[f"{self.name}/free"]

    @torch.no_grad()
    def after_accept(self, rows: Sequence[Row]) -> Mapping[str, Tensor]:
        """Return the bases, with the directions that the accepted policy's samples add."""
        covariances = self._covariances(rows)
        if self.view.ranks.rank > 0:
            return {}
        return {
            name: grown(self._bases.get(name), covariance, self.config.energy).float().cpu()
            for name, covariance in covariances.items()
        }

    def _covariances(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Return the sum of ``x x^T`` over the inputs of each adapted layer, by the name of A."""
        temperature = self.view.spec.sampling.temperature
        sums = input_covariances(self.view.policy, rows, temperature)
        return {name: sums[name] for name in self._names if name in sums}


def free_directions(basis: Tensor | None, covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return what inputs have outside of a basis: squared lengths of all directions, and the top ``rank``.

    Args:
        basis: orthonormal columns, (in, k); None for an empty one.
        covariance: sum of ``x x^T`` over the inputs x, (in, in), in float64.

    Returns:
        Squared lengths, (in,), and orthonormal rows, (rank, in); a row is zero where nothing is left.
    """
    width = len(covariance)
    earlier = covariance.new_zeros(width, 0) if basis is None else basis.to(covariance)
    values, vectors = outside(earlier, covariance)
    directions = covariance.new_zeros(rank, width)
    for row, value, vector in zip(directions, values, vectors.T, strict=False):
        if float(value) > SMALLEST * float(covariance.trace()):
            row.copy_(vector - earlier @ (earlier.T @ vector))
    return values.clamp(min=0.0), directions

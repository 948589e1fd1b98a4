"""O-LoRA: a round's adapter learns in directions that the adapters of earlier rounds do not have.

    penalty     sum over layers of  lambda_1 * sum_{i<t} sum |A_i A_t^T|  +  lambda_2 * (||A_t|| + ||B_t||)

Wang et al. 2023, arXiv 2310.14152. The update of round t is ``s B_t A_t``, so A_t spans what it reads of a
layer's inputs, and with ``A_i A_t^T = 0`` it reads nothing that round i's did. Absolute values and the
norms (Frobenius, not squared) are those of the released code; the paper squares the products. Earlier
updates are frozen by being merged into the weights.

The artifact holds the rows of all earlier A as columns (in, k), by the name of the present one. The merged
weights of a repaired candidate come without an adapter; the directions in which they differ most from the
parent's, as many as the rank, take its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from align.algorithms.rows import Row
from align.config.retention.adapters import OLoRAConfig
from align.learner.model.adapter import causal_of, factor_names
from align.retention.base import RetentionMethod
from align.retention.bases import read_columns


class OLoRA(RetentionMethod[OLoRAConfig]):
    """Penalty on what the present adapter's input directions share with those of earlier rounds."""

    acts_on_weights = True

    _factors: tuple[tuple[str, str, float], ...]
    """Names of A and B of every adapted layer, and their scale."""
    _earlier: Mapping[str, Tensor]
    """Rows of all earlier rounds' A as columns, by the name of the present one; none in a first round."""
    _rows: Mapping[str, Tensor]
    """Copies of A after the newest step; empty before the first."""

    def before_round(self) -> None:
        """Read the directions of earlier rounds.

        Raises:
            SnapshotError: they were made for other layers.
        """
        policy = self.view.policy
        self._factors, self._earlier = tuple(factor_names(policy.model)), {}
        self._rows = {}
        if self.artifact is not None:
            trained = policy.named_parameters()
            inputs = {a: trained[a].shape[1] for a, _, _ in self._factors}
            stored = read_columns(self.artifact, inputs, self.name, "adapters")
            self._earlier = {name: columns.to(policy.device) for name, columns in stored.items()}

    def parameter_penalty(self, weights: Mapping[str, Tensor]) -> Iterator[Tensor]:
        for name, earlier in self._earlier.items():
            yield self.config.strength * (weights[name] @ earlier).abs().sum()
        if self.config.l2:
            for a, b, _ in self._factors:
                yield self.config.l2 * (weights[a].norm() + weights[b].norm())

    def after_step(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        # A published candidate may be read back, rounded and without its adapter.
        weights = self.view.policy.named_parameters()
        self._rows = {a: weights[a].detach().clone() for a, _, _ in self._factors}
        return {}

    @torch.no_grad()
    def after_accept(self, rows: Sequence[Row]) -> Mapping[str, Tensor]:
        """Return the directions of earlier rounds, with those of the accepted update."""
        rows_of_a = self._rows or self._merged_directions()
        if self.view.ranks.rank > 0:
            return {}
        columns = {name: tensor.T for name, tensor in rows_of_a.items()}
        if self._earlier:
            columns = {
                name: torch.cat([self._earlier[name], new], 1) for name, new in columns.items()
            }
        return {name: tensor.cpu() for name, tensor in columns.items()}

    def _merged_directions(self) -> dict[str, Tensor]:
        """Return the input directions in which the merged weights differ from the parent's."""
        view = self.view
        before = dict(view.models.copy(view.references.parent).named_modules())
        adapted = [
            (name, layer)
            for name, layer in causal_of(view.policy.model).named_modules()
            if hasattr(layer, "get_delta_weight")
        ]
        directions: dict[str, Tensor] = {}
        for (name, layer), (a, _, _) in zip(adapted, self._factors, strict=True):
            update = layer.get_base_layer().weight - before[name].weight
            update = update.T if layer.fan_in_fan_out else update
            rank = len(view.policy.model.get_parameter(a))
            directions[a] = input_directions(update, rank, view.seed)
        return directions


def input_directions(update: Tensor, rank: int, seed: int) -> Tensor:
    """Return the orthonormal input directions, at most ``rank``, along which an update is largest.

    >>> update = torch.outer(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 3.0, 4.0]))
    >>> input_directions(update, 2, seed=0).abs()
    tensor([[0.0000, 0.6000, 0.8000]])
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _, lengths, vectors = torch.svd_lowrank(update, q=min(rank + 8, *update.shape), niter=4)
    count = int((lengths[:rank] > 1e-3 * lengths[0]).sum())
    return vectors.T[:count]

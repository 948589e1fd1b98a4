"""Gradient projection memory: steps leave the outputs of layers alone on what earlier rounds read.

    M       orthonormal basis (in, k) of the inputs of a linear layer over samples of accepted policies
    g       <- g - g M M^T            before clipping
    delta   <- delta - delta M M^T    after the optimizer

Saha et al. 2021, arXiv 2103.09762, equations 6 to 9. A layer's gradient is a sum of outer products whose
right sides are its inputs, so a step without a part along M changes no output on inputs in the span of M.
After an accepted round the inputs R of its samples add the fewest further directions with which M explains
a share `energy` of |R|^2; they are eigenvectors of the uncentred covariance of what M leaves of R.

Adam scales each weight by itself, which turns a step out of the subspace, so that the step is projected
once more; with the gradient alone the outputs would drift. The moments hold projected gradients only.
Weights that are no linear layer's alone (embeddings, norms, biases) have no such basis, and rest from the
second round on unless ``others`` says otherwise. Of an adapter A has the layer's input and B what A gives:
at a small rank the basis of B soon spans all that A gives, and B rests while A goes on learning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from align.algorithms.rows import Row
from align.config.retention.methods import GPMConfig
from align.learner.penalty import WeightStep
from align.retention.activations import LinearWeight, linear_weights
from align.retention.base import RetentionMethod
from align.retention.bases import grown, input_covariances, read_columns
from rollouts.errors import UserError


class GPM(RetentionMethod[GPMConfig]):
    """Projection of gradients and steps on what earlier rounds' inputs are orthogonal to."""

    acts_on_weights = True
    follows_steps = True

    _layers: Mapping[str, LinearWeight]
    _bases: Mapping[str, Tensor]
    """Orthonormal basis of each matrix's earlier inputs, (in, k); none before the first accepted round."""
    _removed: float = 0.0
    """Share of the last gradient's length that was taken out."""

    def before_round(self) -> None:
        """Read the bases of earlier rounds.

        Raises:
            SnapshotError: they were made for other layers.
            UserError: a rank has a part of the inputs only.
        """
        policy = self.view.policy
        self._layers, self._bases = linear_weights(policy.model), {}
        if policy.sharded and any(layer.transposed for layer in self._layers.values()):
            raise UserError(
                "gpm projects whole inputs of layers, and each rank has a part of them",
                where="retention",
                cause="this model stores its matrices transposed, and ranks share them by their first axis",
                remedy="set policy.ranks to 1, train an adapter, or use ogd",
            )
        if self.artifact is not None:
            trained = policy.named_parameters()
            inputs = {n: w.rows(trained[n]).shape[1] for n, w in self._layers.items()}
            bases = read_columns(self.artifact, inputs, self.name, "input bases")
            self._bases = {name: basis.to(policy.device) for name, basis in bases.items()}

    @torch.no_grad()
    def project(self, gradients: Mapping[str, Tensor]) -> None:
        if not self._bases:
            return
        before = sum(float(g.square().sum()) for g in gradients.values())
        self._project(gradients)
        after = sum(float(g.square().sum()) for g in gradients.values())
        sums = self.summed(before=before, after=after)
        left = sums["after"] / sums["before"] if sums["before"] > 0 else 1.0
        self._removed = max(0.0, 1.0 - left) ** 0.5

    def change_update(self, step: WeightStep) -> None:
        if not self._bases:
            return
        moves = step.moves()
        self._project(moves)
        step.replace_moves(moves)

    def after_step(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        return {f"retention/{self.name}": self._removed}

    @torch.no_grad()
    def after_accept(self, rows: Sequence[Row]) -> Mapping[str, Tensor]:
        """Return the bases, with the directions that the accepted policy's samples add."""
        covariances = input_covariances(self.view.policy, rows, self.view.spec.sampling.temperature)
        if self.view.ranks.rank > 0:
            return {}
        return {
            name: grown(self._bases.get(name), covariance, self.config.energy).float().cpu()
            for name, covariance in covariances.items()
        }

    def _project(self, vectors: Mapping[str, Tensor]) -> None:
        """Take out of tensors like the weights what lies along the bases, in place."""
        for name, tensor in vectors.items():
            basis = self._bases.get(name)
            if basis is not None:
                rows = self._layers[name].rows(tensor)
                rows.sub_((rows @ basis) @ basis.T)
            elif self.config.others == "rest":
                tensor.zero_()

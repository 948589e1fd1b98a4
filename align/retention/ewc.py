"""Online elastic weight consolidation with a diagonal Fisher information.

    penalty     lambda / 2 * sum_i F_i * (theta_i - theta*_i)^2
    gradient    lambda * F_i * (theta_i - theta*_i)
    F           F <- gamma * F + F_k    after every accepted round k

Kirkpatrick et al. 2017, arXiv 1612.00796, equation 3, keep one such term for every task. This is the
online form of Schwarz et al. 2018, arXiv 1805.06370, section 3: one running F that decays by gamma, and
one centre theta*, which is re-centred at the newest accepted weights. `align.retention.fisher` estimates
F_k from samples of the accepted policy.

The weights are those that are trained. With an adapter they are its factors A and B: rounds go on with
the parent's adapter, so a factor is the same parameter in every round. Before the first accepted round
there is no F, and no penalty.

The artifact holds F, in float32 by parameter name. The centre needs no copy: it is the round's parent,
whose snapshot the store keeps by hash.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from align.algorithms.rows import Row
from align.config.learning import EWCConfig
from align.errors import SnapshotError
from align.learner.ranks.sharding import gathered, local, part_like
from align.retention.base import RetentionMethod
from align.retention.fisher import diagonal_fisher


class EWC(RetentionMethod[EWCConfig]):
    """Quadratic penalty around the parent, weighted by the importance of each weight to earlier rounds."""

    acts_on_weights = True

    _fisher: Mapping[str, Tensor] | None = None
    """Running F, laid out like the parameters; None before the first accepted round."""
    _centre: Mapping[str, Tensor] | None = None
    """Weights of the parent; this rank's part if they are sharded."""

    def before_round(self) -> None:
        """Read the running F and copy the parent's weights.

        Raises:
            SnapshotError: the artifact was made for other parameters.
        """
        if self.artifact is None:
            return
        from safetensors.torch import load_file

        stored = load_file(self.artifact)
        trained = self.view.policy.named_parameters()
        shapes = {name: parameter.shape for name, parameter in trained.items()}
        saved = {name: tensor.shape for name, tensor in stored.items()}
        if misfits := sorted(n for n in shapes | saved if shapes.get(n) != saved.get(n)):
            raise SnapshotError(
                f"the Fisher information of an earlier round does not fit the policy: {misfits[0]!r}",
                where=str(self.artifact),
                cause="that round trained other weights, such as an adapter of another rank",
                remedy="take ewc out of this round's retention, or train the same weights again",
            )
        device = self.view.policy.device
        self._fisher = {n: part_like(stored[n].to(device), p.detach()) for n, p in trained.items()}
        self._centre = self.view.weights_of(self.view.references.parent)

    def parameter_penalty(self, weights: Mapping[str, Tensor]) -> Iterator[Tensor]:
        if self._fisher is None or self._centre is None:
            return
        for name, weight in weights.items():
            distance = weight - self._centre[name]
            yield self.config.strength / 2 * (local(self._fisher[name]) * distance.square()).sum()

    @torch.no_grad()
    def after_accept(self, rows: Sequence[Row]) -> Mapping[str, Tensor]:
        """Return the running F, with that of the accepted round added."""
        view = self.view
        fisher = diagonal_fisher(view.policy, rows, view.spec.sampling.temperature, view.ranks)
        if self._fisher is not None:
            for name, squares in fisher.items():
                local(squares).add_(local(self._fisher[name]), alpha=self.config.gamma)
        return gathered(fisher.items(), keep=view.ranks.rank == 0)

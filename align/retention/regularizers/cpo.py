"""Mask of continual policy optimization: weights that a round moved most are held where it left them.

    R_k         per tensor the top share of |theta_k - theta_{k-1}|, after an accepted round k
    R           union of R_k over rounds; theta_ref is theta_k on R_k
    penalty     lambda * sum over tensors n of 1/|R_n| * sum_{i in R_n} |theta_i - theta_ref,i|

"RL Forgets!", arXiv 2607.04364: an L1 penalty, whose gradient has the same size at any distance. It needs
no samples and no pass. The top share of a tensor without a change is empty.

The artifact holds theta_ref in float32 by parameter name, with NaN where a weight is free. With an adapter
the weights are its factors A and B, which every round goes on with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from align.algorithms.rows import Row
from align.config.retention.methods import CPOMaskConfig
from align.learner.ranks.sharding import gathered, local
from align.retention.artifact import parts_of, read_weights
from align.retention.base import RetentionMethod
from align.retention.samples import laid_out


class CPOMask(RetentionMethod[CPOMaskConfig]):
    """L1 penalty on the weights that earlier rounds moved most."""

    acts_on_weights = True

    _goals: Mapping[str, Tensor]
    """Values that weights are drawn to, NaN where one is free, laid out like the parameters; empty in a
    first round."""
    _counts: Mapping[str, int]
    """Number of weights of each tensor that are drawn, over all ranks."""
    _parent: Mapping[str, Tensor]
    """Weights that the round starts from; this rank's part."""

    def before_round(self) -> None:
        """Read what earlier rounds left, and copy the parent's weights.

        Raises:
            SnapshotError: the artifact was made for other parameters.
        """
        self._goals, self._counts = {}, {}
        if self.artifact is not None:
            stored = read_weights(self.artifact, self.view.policy, self.name, "mask")
            self._goals = parts_of(self.view.policy, stored)
            self._counts = {name: int((~goal.isnan()).sum()) for name, goal in stored.items()}
        self._parent = self.view.weights_of(self.view.references.parent)

    def parameter_penalty(self, weights: Mapping[str, Tensor]) -> Iterator[Tensor]:
        for name, goals in self._goals.items():
            if count := self._counts[name]:
                goal = local(goals)
                distance = torch.where(goal.isnan(), 0.0, weights[name] - goal)
                yield self.config.strength / count * distance.abs().sum()

    @torch.no_grad()
    def after_accept(self, rows: Sequence[Row]) -> Mapping[str, Tensor]:
        """Return the values of earlier rounds, with those of the weights that this one moved most."""
        policy, first = self.view.policy, self.view.ranks.rank == 0
        parents = gathered(laid_out(policy, self._parent).items(), keep=first)
        goals = gathered(self._goals.items(), keep=first)
        return {
            name: with_moved(weight, parents[name], self.config.share, goals.get(name))
            for name, weight in gathered(policy.named_parameters().items(), keep=first).items()
        }


def with_moved(weight: Tensor, parent: Tensor, share: float, goal: Tensor | None = None) -> Tensor:
    """Return the values that one tensor is drawn to: ``goal``, and those of the weights that moved most.

    >>> before, after = torch.zeros(4), torch.tensor([0.0, -3.0, 1.0, 2.0])
    >>> with_moved(after, before, 0.5)
    tensor([nan, -3., nan, 2.])
    """
    moved = (weight - parent).abs().flatten()
    largest = moved.topk(max(1, round(share * moved.numel()))).indices
    chosen = largest[moved[largest] > 0]
    drawn = torch.full_like(weight, torch.nan) if goal is None else goal.clone()
    drawn.view(-1)[chosen] = weight.reshape(-1)[chosen]
    return drawn

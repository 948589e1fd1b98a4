"""Quadratic penalty around the parent, weighted by a running importance of every weight.

    penalty     scale * sum_i Omega_i * (theta_i - theta*_i)^2
    gradient    2 * scale * Omega_i * (theta_i - theta*_i)

The methods differ in Omega, which is estimated after every accepted round and added to that of the rounds
before. The centre theta* is the round's parent. The weights are those that are trained. With an adapter
they are its factors A and B: rounds go on with the parent's adapter, so a factor is the same parameter in
every round. Before the first accepted round there is no importance, and no penalty.

The artifact holds Omega, in float32 by parameter name. The centre needs no copy: it is the round's parent,
whose snapshot the store keeps by hash.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from torch import Tensor

from align.config.retention.methods import RetentionConfig
from align.learner.ranks.sharding import local
from align.retention.artifact import parts_of, read_weights
from align.retention.base import RetentionMethod

Config = TypeVar("Config", bound=RetentionConfig)


class ImportancePenalty(RetentionMethod[Config]):
    """Quadratic penalty around the parent; a subclass estimates the importance."""

    acts_on_weights = True
    importance_name: str = "importance"
    """Name for people of what the artifact holds."""

    _importance: Mapping[str, Tensor] | None = None
    """Running importance, laid out like the parameters; None before the first accepted round."""
    _centre: Mapping[str, Tensor]
    """Weights of the parent; this rank's part if they are sharded. Only needed beside an importance."""

    @property
    def scale(self) -> float:
        """Factor of the penalty."""
        raise NotImplementedError

    def before_round(self) -> None:
        """Read the running importance and copy the parent's weights.

        Raises:
            SnapshotError: the artifact was made for other parameters.
        """
        if self.artifact is None:
            return
        policy = self.view.policy
        stored = read_weights(self.artifact, policy, self.name, self.importance_name)
        self._importance = parts_of(policy, stored)
        self._centre = self.view.weights_of(self.view.references.parent)

    def parameter_penalty(self, weights: Mapping[str, Tensor]) -> Iterator[Tensor]:
        if self._importance is None:
            return
        for name, weight in weights.items():
            distance = weight - self._centre[name]
            yield self.scale * (local(self._importance[name]) * distance.square()).sum()

    def added_to_earlier(
        self, importance: Mapping[str, Tensor], decay: float = 1.0
    ) -> Mapping[str, Tensor]:
        """Add the running importance, times ``decay``, to that of the accepted round in place."""
        if self._importance is not None:
            for name, tensor in importance.items():
                local(tensor).add_(local(self._importance[name]), alpha=decay)
        return importance

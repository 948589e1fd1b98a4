"""L2 penalty toward a starting point.

    penalty     alpha / 2 * |theta - theta_0|^2
    gradient    alpha * (theta - theta_0)

This is equation 1 of Li et al. 2018, arXiv 1802.01483, for a model without new layers; theta_0 is the
parent or the base. It is weight decay toward earlier weights instead of zero, and equals EWC with the same
importance for every weight.

With an adapter, theta is the effective weight ``W + s * B A``, and the penalty is that on the update:

    |s B A - s B_0 A_0|^2 = s^2 * sum( (B'B) * (A A') - 2 (B'B_0) * (A A_0') + (B_0'B_0) * (A_0 A_0') )

with elementwise products of r x r matrices, so no full-size update is made. Toward the base ``B_0`` is
zero. The penalty is not on the factors themselves: a fresh A is random, so only the product has a meaning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from align.config.retention.methods import L2SPConfig
from align.learner.model.adapter import factor_names
from align.retention.base import RetentionMethod


class L2SP(RetentionMethod[L2SPConfig]):
    """Penalty on the squared distance from an earlier snapshot."""

    acts_on_weights = True

    _start: Mapping[str, Tensor]
    """Weights of the starting point; this rank's part if they are sharded."""
    _factors: tuple[tuple[str, str, float], ...]
    """Names of A and B of every adapted layer and the scale s; empty if full weights are trained."""

    def before_round(self) -> None:
        """Copy the weights of the starting point."""
        references = self.view.references
        self._start = self.view.weights_of(references.named(self.config.to))
        self._factors = tuple(factor_names(self.view.policy.model))

    def parameter_penalty(self, weights: Mapping[str, Tensor]) -> Iterator[Tensor]:
        half = self.config.alpha / 2
        if not self._factors:
            for name, weight in weights.items():
                yield half * (weight - self._start[name]).square().sum()
        for a, b, scale in self._factors:
            now, start = (weights[b], weights[a]), (self._start[b], self._start[a])
            square = _inner(now, now) - 2 * _inner(now, start) + _inner(start, start)
            yield half * scale**2 * square


def _inner(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> Tensor:
    """Return the inner product of two updates ``B A``, each given by its factors ``(B, A)``."""
    (left_b, left_a), (right_b, right_a) = left, right
    return ((left_b.T @ right_b) * (left_a @ right_a.T)).sum()

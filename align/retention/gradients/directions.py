"""Orthonormal directions in the space of all trained weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Vector = Mapping[str, Tensor]
"""One vector of that space, by parameter name; of sharded weights this rank's part."""
Sum = Callable[[Sequence[float]], Sequence[float]]
"""Adds numbers up over the ranks that have a part of the weights."""


class Directions:
    """Orthonormal vectors; all ranks that have parts of them call every method together."""

    def __init__(self, vectors: Sequence[Vector], total: Sum) -> None:
        self.vectors, self._total = list(vectors), total

    @torch.no_grad()
    def remove_from(self, vector: Vector) -> tuple[float, float]:
        """Take the part that lies along the directions out of a vector, in place.

        Returns:
            Squared length of what was removed, and of the vector before.
        """
        sums = self._total(
            [*(_dot(direction, vector) for direction in self.vectors), _dot(vector, vector)]
        )
        *shares, square = sums
        for share, direction in zip(shares, self.vectors, strict=True):
            for name, tensor in vector.items():
                tensor.sub_(direction[name], alpha=share)
        return sum(share * share for share in shares), square

    def add(self, vector: Vector, smallest: float = 1e-3) -> bool:
        """Add the part of a vector that lies along none of the directions, at length 1.

        The part is computed twice, as rounding leaves something of the directions in it.

        Args:
            smallest: share of the vector's length below which the part is rounding, and is left out.
        """
        rest = {name: tensor.clone() for name, tensor in vector.items()}
        _, before = self.remove_from(rest)
        _, square = self.remove_from(rest)
        if not square > smallest**2 * before:
            return False
        self.vectors.append({name: tensor.div_(square**0.5) for name, tensor in rest.items()})
        return True


def _dot(left: Vector, right: Vector) -> float:
    return sum(
        float((tensor * right[name]).sum(dtype=torch.float64)) for name, tensor in left.items()
    )

"""One rank of the learner among others: whose turn a pass is, and the sums over all of them.

Every rank holds the whole batch and makes every `size`-th forward pass. Denominators are the batch's own,
so losses, metrics and gradients are *summed* over ranks, and one rank alone is the trivial case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")
_NOTHING = object()


@dataclass(frozen=True, slots=True)
class Ranks:
    """One of `size` learners that step together. Beyond one, torch.distributed has to be initialized."""

    rank: int = 0
    size: int = 1
    keeper: int = 0
    """Rank that publishes what is written on this rank's disk: the first of those that share it."""

    def deal(self, count: int) -> list[tuple[int, bool]]:
        """Return the passes that this rank makes out of ``count``; see `dealt`."""
        return dealt(count, self.rank, self.size)

    def gather(self, items: Sequence[T]) -> list[T]:
        """Return everything that all ranks made of what they were dealt, in its first order."""
        return in_turn(self.exchange(list(items)))

    def sum(self, parts: Mapping[str, float]) -> dict[str, float]:
        """Return the sums by name over all ranks; the same on each, whoever has a name."""
        return summed(self.exchange(dict(parts)))

    def max(self, value: float) -> float:
        """Return the largest of all ranks' values."""
        return max(self.exchange(value))

    def exchange(self, value: T) -> list[T]:
        """Return the values of all ranks, by rank. Nobody goes on before all have come here."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[T] = [value] * self.size
        distributed.all_gather_object(values, value)
        return values

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of parameters that every rank holds whole; those of sharded ones are summed
        in the backward pass."""
        if self.size == 1:
            return
        import torch
        from torch.distributed.tensor import DTensor

        whole = [p.grad for p in parameters if p.grad is not None and not isinstance(p, DTensor)]
        if not whole:
            return
        flat = torch.cat([gradient.flatten() for gradient in whole])
        torch.distributed.all_reduce(flat)
        pieces = torch.split(flat, [gradient.numel() for gradient in whole])
        for gradient, piece in zip(whole, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))


SOLO = Ranks()
"""The only rank there is."""


def dealt(count: int, rank: int, size: int) -> list[tuple[int, bool]]:
    """Return the index of each pass that a rank makes, in turn, and whether it counts.

    Sharded weights are gathered in every pass, which needs all ranks, so all make the same number: who
    has none left repeats the first, and it counts for nothing.

    >>> dealt(5, 0, 2), dealt(5, 1, 2)
    ([(0, True), (2, True), (4, True)], [(1, True), (3, True), (0, False)])
    """
    turns = range(rank, -(-count // size) * size, size)
    return [(turn, True) if turn < count else (0, False) for turn in turns]


def in_turn(hands: Sequence[Sequence[T]]) -> list[T]:
    """Return the items of all hands in the order in which they were dealt.

    >>> in_turn([["a", "c", "e"], ["b", "d"]])
    ['a', 'b', 'c', 'd', 'e']
    """
    rounds = zip_longest(*hands, fillvalue=_NOTHING)
    return [item for turn in rounds for item in turn if item is not _NOTHING]  # type: ignore[misc]


def summed(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return sums by name, in order of first appearance.

    >>> summed([{"loss": 1.0}, {"loss": 2.0, "kl": 0.5}])
    {'loss': 3.0, 'kl': 0.5}
    """
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}

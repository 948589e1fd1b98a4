"""Examples dealt out: endless epochs whose order a restart repeats."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from align.algorithms.rows import Row
from rollouts.types import Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """Rows that are learnt from together: the two sides of a pair, or one row."""

    id: str
    """16 hex digits that depend on the prompt and the answers alone."""
    prompt: Prompt | None
    """Prompt of the unit; None for text that answers nothing."""
    rows: tuple[Row, ...]
    place: str = field(default="", compare=False)
    """File and line that the unit was read from; for a window, those of its first document."""
    documents: tuple[str, ...] = field(default=(), compare=False)
    """Names of the documents that a window of texts is cut from."""


class ExampleStream:
    """Units in endless epochs; every epoch is a new permutation, fixed by the seed.

    The order comes from hashes of seed, epoch and unit id, as a `PromptStream`'s does: what stands at a
    position depends on neither the machine, nor the order of the file, nor what was asked for before.
    """

    def __init__(self, units: Sequence[Unit], seed: int) -> None:
        if not units:
            raise ValueError("a stream needs at least one unit")
        self._units = sorted(units, key=lambda unit: unit.id)
        self._seed = seed
        self._epoch = -1
        self._order: list[Unit] = []

    def __len__(self) -> int:
        """Count the units of one epoch."""
        return len(self._units)

    def at(self, first: int, count: int) -> list[Unit]:
        """Return the units at positions ``first`` to ``first + count``, counted over all epochs."""
        if first < 0:
            raise ValueError(f"position {first} is negative")
        return [self._at(position) for position in range(first, first + count)]

    def _at(self, position: int) -> Unit:
        epoch, index = divmod(position, len(self._units))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = sorted(self._units, key=lambda unit: self._draw(epoch, unit.id))
        return self._order[index]

    def _draw(self, epoch: int, unit_id: str) -> bytes:
        return hashlib.sha256(f"{self._seed}/{epoch}/{unit_id}".encode()).digest()


def rows_of(units: Sequence[Unit]) -> list[Row]:
    """Return the rows of a step's units, those of one unit under one number.

    Numbers count down from -1: pairs of rollouts count up from 0, and a batch may hold both.
    """
    return [
        replace(row, unit=-number if len(unit.rows) > 1 else None)
        for number, unit in enumerate(units, start=1)
        for row in unit.rows
    ]

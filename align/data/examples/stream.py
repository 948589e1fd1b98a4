"""Endless epochs of examples, in an order that a restart repeats."""

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
    """Hash of 16 hex digits that depends on the prompt and the answers alone."""
    prompt: Prompt | None
    """Prompt of the unit; None for plain text."""
    rows: tuple[Row, ...]
    location: str = field(default="", compare=False)
    """File and line that the unit was read from; for a window, those of its first document."""
    documents: tuple[str, ...] = field(default=(), compare=False)
    """Names of the documents that a window of texts is cut from."""


class ExampleStream:
    """Units in endless epochs, each of which is a new permutation fixed by the seed.

    The order comes from hashes of seed, epoch and unit id, as that of a `PromptStream` does. So the unit at
    a position does not depend on the machine, the order of the file, or earlier calls.
    """

    def __init__(self, units: Sequence[Unit], seed: int) -> None:
        if not units:
            raise ValueError("a stream needs at least one unit")
        self._units = sorted(units, key=lambda unit: unit.id)
        self._seed = seed
        self._epoch = -1
        self._order: list[Unit] = []

    def reseeded(self, seed: int) -> ExampleStream:
        """Return a stream of the same units in another order."""
        return ExampleStream(self._units, seed)

    def __len__(self) -> int:
        """Count the units of one epoch."""
        return len(self._units)

    @property
    def rows_per_unit(self) -> int:
        """Number of rows in a unit: 2 for pairs, 1 for all others."""
        return len(self._units[0].rows)

    def at(self, first: int, count: int) -> list[Unit]:
        """Return the units at positions ``first`` to ``first + count``, counted over all epochs."""
        if first < 0:
            raise ValueError(f"position {first} is negative")
        units = []
        for position in range(first, first + count):
            epoch, index = divmod(position, len(self._units))
            if epoch != self._epoch:
                key = f"{self._seed}/{epoch}"
                self._epoch = epoch
                self._order = sorted(
                    self._units,
                    key=lambda unit: hashlib.sha256(f"{key}/{unit.id}".encode()).digest(),
                )
            units.append(self._order[index])
        return units


def rows_of(units: Sequence[Unit]) -> list[Row]:
    """Return the rows of a step's units; rows of one unit share a number.

    Numbers count down from -1, since pairs of rollouts count up from 0 and a batch may have both.
    """
    return [
        replace(row, unit=-number if len(unit.rows) > 1 else None)
        for number, unit in enumerate(units, start=1)
        for row in unit.rows
    ]

"""The contract of corpus metrics: rewards for one answer that also count, for the value of many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from rewards.library.corpus.formulas import Formula

Counts = tuple[float, ...]
"""Numbers that one answer adds to the counts of its set."""


@runtime_checkable
class CorpusMetric(Protocol):
    """A reward class, called with completions and columns for one value per answer, as in training."""

    @property
    def formula(self) -> Formula:
        """Formula that makes the value of a suite of the sum of its items' counts."""

    @property
    def counts(self) -> Callable[..., list[Counts]]:
        """Method with the arguments of a call that returns the counts of each answer.

        An answer to a row without a reference adds zeros.
        """


def references_of(right: Any) -> list[str]:
    """Return the texts that a cell of the column ``answer`` accepts; empty where it has none."""
    cells = right if isinstance(right, list | tuple) else [right]
    return [str(cell) for cell in cells if cell is not None]

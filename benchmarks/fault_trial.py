"""One trial of faults: what is tried, how often, and what a try came to.

A family of faults lies in a file ``benchmarks/fault_<family>.py`` with a mapping ``TRIALS``;
`benchmarks.faults` runs them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class FaultOutcome:
    """End of one try: nothing was lost, or something was."""

    survived: bool
    sentence: str
    """What happened, with its numbers; of a loss, what was lost."""

    @classmethod
    def kept(cls, sentence: str) -> Self:
        """Return the outcome of a try that lost nothing."""
        return cls(True, sentence)

    @classmethod
    def lost(cls, sentence: str) -> Self:
        """Return the outcome of a try that lost something."""
        return cls(False, sentence)


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultTrial:
    """A kind of fault that real code is put through a number of times."""

    tried: str
    """What is done and what must hold, as one sentence of the page."""
    tries: int
    """Number of tries of the whole benchmark; seeds are 0 to tries - 1."""
    run: Callable[[int, Path], FaultOutcome]
    """Takes a seed, which alone decides the try, and an empty folder, which is removed afterwards. An
    exception counts as lost."""
    quick: int = 1
    """Number of tries with ``--quick``."""

"""Protocol of a tracker, which is handed numbers and keeps them where another program finds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Tracker(Protocol):
    """A place for curves. A run is one attempt at one round; runs follow each other."""

    def log(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the numbers of one learner step, counted from 0; all are finite."""
        ...

    def close(self) -> None:
        """Write out what is still in memory. Nothing is logged afterwards."""
        ...

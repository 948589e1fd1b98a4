"""Facts about the values of a suite that the gate chooses its test by."""

from __future__ import annotations

from dataclasses import dataclass

Range = tuple[float, float]
UNIT: Range = (0.0, 1.0)
"""Range of shares."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreScale:
    """Facts about a suite's values that hold before any is measured."""

    range: Range | None = None
    """Smallest and largest value; None: not known."""
    bounded: bool = True
    """False for log-likelihoods: a damaged item can lose any amount."""
    of_metric: bool = False
    """True for values of a metric: only they tell, once measured, whether its margins are shares."""
    graded: bool = False
    """True for values that are known to lie between pass and fail."""
    unit: str = ""
    """Unit of a value, such as nats; empty: reward."""

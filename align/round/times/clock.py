"""Wall time of a run by what it was spent on; every second is counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter
from typing import Final, Literal

Phase = Literal[
    "start-up",
    "sampling",
    "scoring",
    "learning",
    "command",
    "weight sync",
    "drift meters",
    "watching",
    "checkpoints",
    "records",
    "parity probe",
    "publishing",
    "measuring",
    "judging",
    "other",
]
"""Kinds of work; ``other`` is whatever no phase covers."""
MEASURING: Final = "measuring/"
"""Prefix of the seconds of one suite, which follow it by name."""


_CLOCK: ContextVar[PhaseClock | None] = ContextVar("clock", default=None)


@contextmanager
def phase(name: Phase) -> Iterator[None]:
    """Count the seconds of a block, or as a decorator of a function's calls, as those of a phase.

    They go to the clock that runs; nothing is counted if none does.
    """
    clock = _CLOCK.get()
    if clock is None:
        yield
        return
    with clock.phase(name):
        yield


def measured(suite: str, seconds: float) -> None:
    """Tell the clock that runs how much of its phase ``measuring`` a suite took."""
    if (clock := _CLOCK.get()) is not None:
        clock.measured(suite, seconds)


class PhaseClock:
    """Stopwatch of a runner, with one phase running at a time.

    A phase that begins inside another pauses it, so the seconds of all phases sum to the time elapsed.
    Use it from one thread.

    >>> ticks = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    >>> clock = PhaseClock(lambda: next(ticks))
    >>> with clock.phase("sampling"):
    ...     with clock.phase("scoring"):
    ...         pass
    >>> clock.seconds()
    {'other': 6.0, 'sampling': 6.0, 'scoring': 3.0}
    """

    before: Mapping[str, float]
    """Seconds by phase that the last `restart` ended."""

    def __init__(self, now: Callable[[], float] = perf_counter) -> None:
        """Start in the phase ``other``.

        Args:
            now: monotonic time in seconds.
        """
        self._now = now
        self._since = now()
        self.before = {}
        self._seconds: dict[str, float] = {}
        self._phases: list[str] = ["other"]

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Count the seconds of the block as those of a phase."""
        self._lap()
        self._phases.append(name)
        try:
            yield
        finally:
            self._lap()
            self._phases.pop()

    def measured(self, suite: str, seconds: float) -> None:
        """Count seconds of ``measuring`` as those of one suite; at most as many as there are."""
        self._lap()
        moved = min(max(seconds, 0.0), self._seconds.get("measuring", 0.0))
        self._add("measuring", -moved)
        self._add(f"{MEASURING}{suite}", moved)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of every phase since the clock was started or restarted."""
        self._lap()
        return dict(self._seconds)

    def restart(self) -> None:
        """Count from 0 again; phases that are open stay open."""
        self.before = self.seconds()
        self._seconds = {}

    @contextmanager
    def running(self) -> Iterator[PhaseClock]:
        """Make this the clock that `phase` counts on, within the block."""
        token = _CLOCK.set(self)
        try:
            yield self
        finally:
            _CLOCK.reset(token)

    def _lap(self) -> None:
        now = self._now()
        self._add(self._phases[-1], now - self._since)
        self._since = now

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

"""Progress of measuring a snapshot: items done of all, items per second, time left.

`CountedEngine` stands between a suite and the engine and counts answers as they come, so that no kind of
suite has to know that somebody watches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal

from rollouts.engines.protocol import (
    Conversation,
    RolloutEngine,
    SampleRequest,
    SampleResult,
    ScoreRequest,
    StreamScoringEngine,
    StreamTicket,
    SyncReport,
    Ticket,
    WeightUpdate,
)
from rollouts.engines.turns import conversation_with

Stage = Literal["asking", "scoring", "measured"]
"""Step of a suite: ``asking`` (engines sample or score), ``scoring`` (the metric reads), ``measured``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteProgress:
    """Progress of one suite on one snapshot."""

    suite: str
    number: int
    """Position of the suite among those measured now, from 1."""
    suites: int
    """Number of suites measured now."""
    done: int
    """Items that have their answers."""
    total: int
    seconds: float
    """Seconds since the suite began."""
    stage: Stage

    @property
    def rate(self) -> float:
        """Items per second so far; 0 before the first."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds for the remaining items at this rate; None before the first item."""
        return (self.total - self.done) / self.rate if self.rate else None

    @property
    def speed(self) -> str:
        """Rate and time left, for people.

        >>> SuiteProgress(
        ...     suite="a", number=1, suites=1, done=30, total=90, seconds=10.0, stage="asking"
        ... ).speed
        '3 items/s, 20 s left'
        """
        if self.stage == "scoring":
            return "scoring the answers"
        if self.left_s is None:
            return "waiting for the first answers"
        return f"{per_second(self.rate)}, {duration_text(self.left_s)} left"


def per_second(rate: float) -> str:
    """Format a rate of items for people.

    >>> per_second(1180.4), per_second(0.0523)
    ('1,180 items/s', '0.052 items/s')
    """
    return f"{rate:,.0f} items/s" if rate >= 100 else f"{rate:.2g} items/s"


def duration_text(seconds: float) -> str:
    """Format a duration for people.

    >>> duration_text(59.6), duration_text(61), duration_text(3700)
    ('1 min', '1 min 1 s', '1 h 1 min')
    """
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{rest} s"


Tell = Callable[[SuiteProgress], None]
"""Listener for progress; called often, with every few answers."""


@dataclass(kw_only=True)
class SuiteMeter:
    """Counter of one suite's answers."""

    suite: str
    number: int
    suites: int
    items: int
    tell: Tell
    _asked: int = 0
    _answered: int = 0
    _done: int = 0
    """Items done so far; never falls, even if the suite asks for more answers."""
    _began: float = field(default_factory=monotonic)

    def ask(self, count: int) -> None:
        """Add ``count`` to the answers that are expected."""
        self._asked += count
        self._say("asking")

    def answer(self, count: int) -> None:
        """Add ``count`` to the answers that have arrived."""
        self._answered += count
        self._say("scoring" if self._answered >= self._asked else "asking")

    def finish(self) -> None:
        """Report that every item has its value."""
        self._say("measured")

    def _say(self, stage: Stage) -> None:
        # Some suites ask several questions of an item.
        share = 1.0 if stage == "measured" else self._answered / max(self._asked, 1)
        self._done = max(self._done, int(self.items * share))
        self.tell(
            SuiteProgress(
                suite=self.suite,
                number=self.number,
                suites=self.suites,
                done=self._done,
                total=self.items,
                seconds=monotonic() - self._began,
                stage=stage,
            )
        )


class CountedEngine:
    """Wrapper of a `RolloutEngine` that counts its answers."""

    def __init__(self, engine: RolloutEngine, meter: SuiteMeter) -> None:
        self._engine, self._meter = engine, meter

    def submit(self, requests: Sequence[SampleRequest]) -> Ticket:
        """Begin to sample; answers are counted while they are waited for."""
        return self.watch(self._engine.submit(requests), len(requests))

    def open(self) -> Conversation:
        """Open a conversation with the engine; its requests are turns, which are not counted."""
        return conversation_with(self._engine)

    def watch(self, ticket: Ticket, results: int) -> Ticket:
        """Return a ticket of which the results are counted while they are waited for."""
        self._meter.ask(results)
        return lambda: self._counted(ticket)

    def generate(self, requests: Sequence[SampleRequest]) -> list[SampleResult]:
        """Sample every request once."""
        return self.submit(requests)()

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        """Return the log-probabilities of each request's completion tokens."""
        self._meter.ask(len(requests))
        if not isinstance(self._engine, StreamScoringEngine):
            answers = self._engine.score(requests)
            self._meter.answer(len(answers))
            return answers
        scored: dict[int, tuple[float, ...]] = {}
        for fresh in self._engine.scores(requests):
            scored |= dict(fresh)
            self._meter.answer(len(fresh))
        return [scored[index] for index in range(len(requests))]

    def sync(self, update: WeightUpdate) -> SyncReport:
        """Hand weights on to the engine."""
        return self._engine.sync(update)

    def close(self) -> None:
        """Leave the engine to its owner, who closes it."""

    def _counted(self, ticket: Ticket) -> list[SampleResult]:
        if not isinstance(ticket, StreamTicket):
            results = ticket()
            self._meter.answer(len(results))
            return results
        for fresh in ticket.arrivals():
            self._meter.answer(len(fresh))
        return ticket()

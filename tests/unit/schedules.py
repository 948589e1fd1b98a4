"""Schedules for the tests, verdicts for their rounds, and a campaign in memory that lives by them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import insert

from align.config.schedule import ScheduleSettings
from align.schedule.due import Arrivals, Claimed, Due, History, Schedule, Skip, Tick, Waits, tick
from align.store.ledger.ledger import Ledger
from align.store.ledger.tables.core import rounds
from tests.unit.ledgers import FIRST

START = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
NAME = "nightly"


def verdict(ledger: Ledger, name: str, index: int) -> None:
    """A round of this name is rejected."""
    ledger.record_snapshot(FIRST)
    values = {
        "index": index,
        "attempt": 1,
        "name": name,
        "state": "rejected",
        "candidate": FIRST.id,
    }
    with ledger.database.write() as connection:
        connection.execute(insert(rounds).values(values))


def at(text: str) -> datetime:
    """A moment in UTC, such as ``2026-11-20 03:00``."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def schedule(name: str = NAME, stream: str | None = None, **settings: Any) -> Schedule:
    return Schedule(name=name, settings=ScheduleSettings.model_validate(settings), stream=stream)


def arrived(count: int, since: datetime = START, **changes: Any) -> Arrivals:
    """So many rows that nobody has used."""
    return replace(Arrivals(count=count, oldest=since if count else None, newest=count), **changes)


class World:
    """One schedule, its stream and its rounds, as the store would have them."""

    def __init__(self, one: Schedule, now: datetime = START) -> None:
        self.schedule, self.now = one, now
        self.history = History(since={one.name: now})
        self.rows: list[datetime] = []
        """When each arrived."""
        self.watermark = 0
        self.found: list[Due] = []
        """Everything that was claimed."""

    def arrivals(self) -> Arrivals:
        new = self.rows[self.watermark :]
        oldest = min(new, default=None)
        return Arrivals(
            count=len(new), oldest=oldest, newest=len(self.rows), watermark=self.watermark
        )

    def look(self) -> Due | Waits:
        found = self.tick()
        return (*found.due, *found.waits)[0]

    def tick(self) -> Tick:
        place = self.schedule.stream or ""
        return tick([self.schedule], self.history, {place: self.arrivals()}, self.now)

    def claim(self) -> Due | Waits:
        """Look, and write down what follows from it."""
        found = self.look()
        if isinstance(found, Due) and not found.claimed:
            self.found.append(found)
            here = self.arrivals()
            new = Claimed(
                schedule=found.schedule,
                key=found.key,
                round=found.round,
                claimed=self.now,
                newest=here.newest,
                watermark=here.watermark,
                stream=self.schedule.uses_up,
            )
            self.history = replace(self.history, claims=(*self.history.claims, new))
        if isinstance(found, Waits) and found.passed:
            self.history = replace(self.history, since={found.schedule: self.now})
        return found

    def skip(self) -> None:
        """A person passes over what is due, if anything is."""
        found = self.claim()
        if isinstance(found, Due):
            made = Skip(
                schedule=found.schedule,
                key=found.key,
                round=found.round,
                who="somebody",
                reason="bad data",
                time=self.now,
            )
            self.history = replace(self.history, skips=(*self.history.skips, made))

    def wait(self, **time: float) -> None:
        self.now += timedelta(**time)

    def arrive(self, count: int) -> None:
        self.rows += [self.now] * count

    def finish(self, *, uses: bool = True) -> None:
        """The round that is open gets its verdict."""
        opened = {claim.round for claim in self.history.claims} - self.history.skipped.keys()
        verdicts = self.history.verdicts | opened
        if uses and verdicts != self.history.verdicts:
            self.watermark = len(self.rows)
        self.history = replace(self.history, verdicts=verdicts)

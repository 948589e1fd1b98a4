"""Rows of the ledger as values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import and_, select

from align.store.database.database import Database
from align.store.ledger.tables.core import rounds
from align.store.paths import inner
from rollouts.types import SnapshotId

RoundState = Literal[
    "planned", "running", "gating", "accepted", "rejected", "failed", "skipped", "dropped"
]
"""``skipped`` and ``dropped``: a person said that there shall be no further attempt, whatever came of those
before; a skipped round had fallen due, a dropped one was the campaign file's."""


class StoredReport(Mapping[str, Any]):
    """Report of an attempt, read when it is first looked into: a verdict's is tens of kilobytes long."""

    __slots__ = ("_database", "_place", "_values")

    def __init__(self, database: Database, index: int, attempt: int) -> None:
        self._database, self._place = database, (index, attempt)
        self._values: Mapping[str, Any] | None = None

    def _read(self) -> Mapping[str, Any]:
        if self._values is None:
            index, attempt = self._place
            this = and_(rounds.c.index == index, rounds.c.attempt == attempt)
            with self._database.read() as connection:
                report = connection.scalar(select(rounds.c.report).where(this))
            self._values = {} if report is None else json.loads(report)
        return self._values

    def __getitem__(self, key: str) -> Any:
        return self._read()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self._read()) == dict(other)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundRecord:
    """One attempt at a round; attempt 0 is the plan."""

    index: int
    attempt: int
    name: str
    state: RoundState
    parent: SnapshotId | None
    candidate: SnapshotId | None
    report: Mapping[str, Any] | None
    started: str | None
    """ISO 8601, UTC; so is ``ended``."""
    ended: str | None

    @property
    def closed(self) -> bool:
        """True if the round is over: it has a verdict, or was skipped or dropped."""
        return self.state in ("accepted", "rejected", "skipped", "dropped")

    @property
    def live(self) -> bool:
        """True while a runner is at the round, or was when it was interrupted."""
        return self.state in ("running", "gating")


@dataclass(frozen=True, kw_only=True, slots=True)
class AliasMove:
    """One line of the append-only log of an alias."""

    seq: int
    alias: str
    previous: SnapshotId | None
    target: SnapshotId
    round: int | None
    """Index of the accepted round; None for the first move."""
    reason: str
    time: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRecord:
    """Location of the per-item results of one snapshot on one suite."""

    snapshot: SnapshotId
    suite: str
    suite_hash: str
    path: str
    """Relative to the store."""
    n: int
    mean: float
    recorded: str
    sha256: str | None = None
    """Hash of the file on record; None in stores older than the record."""

    def __post_init__(self) -> None:
        inner(self.path)


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotRecord:
    """Snapshot that was published, whether its files are still there or not."""

    id: SnapshotId
    kind: str
    parent: SnapshotId | None
    round: str | None
    """Name of the round that made it; None for the base."""
    bytes: int
    recorded: str
    """Time of the record, ISO 8601, UTC."""

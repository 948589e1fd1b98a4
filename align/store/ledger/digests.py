"""Digests of verdicts: what a decision asks of all earlier ones, without reading their reports.

Written in the transaction that writes the verdict. Rounds that have none, as in stores of earlier versions,
are digested from their reports, once they are read; `digest_earlier` writes those down.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, insert, select

from align.store.database.database import Database
from align.store.ledger.tables.core import rounds
from align.store.ledger.tables.verdicts import judged_suites, verdict_digests
from align.store.repairs import KEY as REPAIRS
from rollouts.types import SnapshotId

DECIDED = rounds.c.state.in_(("accepted", "rejected"))


@dataclass(frozen=True, kw_only=True, slots=True)
class VerdictDigest:
    """Parts of one verdict that later decisions ask for."""

    index: int
    attempt: int
    outcome: str | None
    gate: str | None
    """JSON of the gate's settings; None in reports that are no verdict of this gate."""
    look: int | None
    """Number of the decision, or of the declared rounds where it is one of them."""
    level: float | None
    """Error that it was allowed where the rule alone does not say it."""
    tried: tuple[tuple[int, SnapshotId], ...]
    """Decision and candidate of every candidate that the round put forward, if it repaired its first."""

    @property
    def num_looks(self) -> int:
        """Number of decisions that the round took."""
        return len(self.tried) or 1


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedSuite:
    """Snapshots and items that one verdict rests on in one suite."""

    index: int
    attempt: int
    suite: str
    hash: str
    target_of: str | None
    candidate: SnapshotId | None
    best: SnapshotId | None
    items: str | None
    """JSON of the number of first items by snapshot; None if all were compared."""


Digests = Mapping[tuple[int, int], VerdictDigest]
"""Digests by index and attempt."""


def write_digest(
    connection: Connection, index: int, attempt: int, report: Mapping[str, Any]
) -> None:
    """Write the digest of a verdict, inside the transaction that writes it."""
    digest, suites = digest_of(index, attempt, report)
    values = _values(digest) | {"tried": json.dumps(digest.tried) if digest.tried else None}
    connection.execute(insert(verdict_digests).values(values))
    if suites:
        connection.execute(insert(judged_suites), [_values(suite) for suite in suites])


def digest_earlier(connection: Connection) -> None:
    """Write the digests that are missing, inside the caller's transaction."""
    for index, attempt, report in _undigested(connection):
        write_digest(connection, index, attempt, report)


def digests_of(database: Database) -> Digests:
    """Return the digest of every verdict, by index and attempt, in the rounds' order."""

    def read(connection: Connection) -> dict[tuple[int, int], VerdictDigest]:
        rows = connection.execute(select(verdict_digests))
        digests = [
            VerdictDigest(
                index=index, attempt=attempt, outcome=outcome, gate=gate, look=look, level=level,
                tried=tuple((look, id) for look, id in json.loads(tried)) if tried else (),
            )
            for index, attempt, outcome, gate, look, level, tried in rows
        ]  # fmt: skip
        digests += [digest_of(*missing)[0] for missing in _undigested(connection)]
        return {(d.index, d.attempt): d for d in sorted(digests, key=lambda d: d.index)}

    return database.follow("digests", read)


def last_best(database: Database, names: Iterable[str]) -> dict[str, SnapshotId]:
    """Return by suite the snapshot that the last verdict on it called best, where one did."""
    suites = list(dict.fromkeys(names))
    newest: dict[str, JudgedSuite] = {}
    with database.read() as connection:
        for name in suites:
            this = and_(judged_suites.c.suite == name, judged_suites.c.best.is_not(None))
            rows = select(judged_suites).where(this).order_by(judged_suites.c.index.desc())
            row = connection.execute(rows.limit(1)).one_or_none()
            if row is not None:
                newest[name] = JudgedSuite(**row._mapping)
    for suite in _undigested_suites(database):
        if suite.suite in suites and suite.best is not None:
            known = newest.get(suite.suite)
            if known is None or known.index < suite.index:
                newest[suite.suite] = suite
    return {name: suite.best for name, suite in newest.items() if suite.best is not None}


def judged_by_hash(database: Database, suite_hash: str) -> list[JudgedSuite]:
    """List what verdicts rest on in one suite, in the rounds' order."""
    with database.read() as connection:
        rows = connection.execute(select(judged_suites).where(judged_suites.c.hash == suite_hash))
        judged = [JudgedSuite(**row._mapping) for row in rows]
    judged += [s for s in _undigested_suites(database) if s.hash == suite_hash]
    return sorted(judged, key=lambda suite: suite.index)


def judged_names(connection: Connection) -> frozenset[str]:
    """Name the suites of no round that some verdict rests on."""
    query = select(judged_suites.c.suite).where(judged_suites.c.target_of.is_(None)).distinct()
    names = set(connection.scalars(query))
    for missing in _undigested(connection):
        names |= {suite.suite for suite in digest_of(*missing)[1] if suite.target_of is None}
    return frozenset(names)


def digest_of(
    index: int, attempt: int, report: Mapping[str, Any]
) -> tuple[VerdictDigest, list[JudgedSuite]]:
    """Draw a digest from a report."""
    inputs = report.get("inputs") or {}
    attempt_key = {"index": index, "attempt": attempt}
    digest = VerdictDigest(
        **attempt_key,
        outcome=report.get("outcome"),
        gate=json.dumps(inputs.get("gate", {}), sort_keys=True) if "inputs" in report else None,
        look=inputs.get("looks"),
        level=inputs.get("level"),
        tried=tuple((step["look"], step["candidate"]) for step in report.get(REPAIRS, ())),
    )
    items = inputs.get("items") or {}
    chosen = {kind: inputs.get(kind) or {} for kind in ("candidate", "best")}
    rules = {rule["name"]: rule for rule in inputs.get("suites", ())}
    suites = [
        JudgedSuite(
            **attempt_key,
            suite=name,
            hash=rules.get(name, {}).get("hash", ""),
            target_of=rules.get(name, {}).get("target_of"),
            candidate=chosen["candidate"].get(name),
            best=chosen["best"].get(name),
            items=json.dumps(items[name], sort_keys=True) if name in items else None,
        )
        for name in dict.fromkeys((*rules, *chosen["best"]))
    ]
    return digest, suites


def _undigested(connection: Connection) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    """Yield index, attempt and report of decided rounds that have no digest, in order."""
    same = and_(
        verdict_digests.c.index == rounds.c.index, verdict_digests.c.attempt == rounds.c.attempt
    )
    query = select(rounds.c.index, rounds.c.attempt).where(DECIDED)
    missing = query.where(~select(verdict_digests.c.index).where(same).exists())
    places: Sequence[tuple[int, int]] = connection.execute(missing).all()
    for index, attempt in sorted(places):
        this = and_(rounds.c.index == index, rounds.c.attempt == attempt)
        report = connection.scalar(select(rounds.c.report).where(this))
        yield index, attempt, {} if report is None else json.loads(report)


def _undigested_suites(database: Database) -> Sequence[JudgedSuite]:
    """List what verdicts without a digest rest on, in order."""

    def read(connection: Connection) -> list[JudgedSuite]:
        return [suite for missing in _undigested(connection) for suite in digest_of(*missing)[1]]

    return database.follow("undigested suites", read)


def _values(row: VerdictDigest | JudgedSuite) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__dataclass_fields__}

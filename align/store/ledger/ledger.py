"""The truth about a campaign: its rounds, verdicts, evidence, and which snapshot is production.

A round is ``planned -> running -> gating -> accepted | rejected | failed``; every verdict is one
transaction together with the alias move it causes, so production never names a snapshot without an
accept record. Each beginning of a round is a new attempt, and a runner with an older attempt can
no longer write. The ledger holds no weights and no items, only their names and hashes.

    ledger = Ledger("sqlite:///runs/digits/ledger.sqlite")
    ledger.open_campaign("digits", config, config_hash)
    with ledger.lease("keel run") as lease:
        attempt = ledger.begin_round(0, "reverse", parent=ledger.alias("production"))
        ...                                                     # lease.beat() at every step
        ledger.record_snapshot(candidate)
        ledger.enter_gating(0, attempt, candidate.id)
        ledger.commit_round(0, attempt, "accepted", candidate.id, report)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, and_, func, insert, select, update

from align.errors import StaleAttempt
from align.store.changes.compare import CampaignComparison
from align.store.database.database import Database
from align.store.ledger.campaign_row import INTERRUPTED, Read, compared, open_campaign_row
from align.store.ledger.collected import (
    CollectionLog,
    collected_in,
    note_collected,
    note_returned,
)
from align.store.ledger.digests import digest_earlier, write_digest
from align.store.ledger.leases import EXPIRY_S, Claimant, Lease, Note, leased, logged
from align.store.ledger.records import (
    AliasMove,
    EvaluationRecord,
    RoundRecord,
    RoundState,
    SnapshotRecord,
    StoredReport,
)
from align.store.ledger.reservations import consume
from align.store.ledger.tables.core import (
    alias_moves,
    campaigns,
    evaluations,
    rounds,
    snapshots,
)
from align.store.ledger.tables.logs import due_skips, round_drops, stored_files
from align.store.snapshots.snapshots import Snapshot
from rollouts.types import SnapshotId

__all__ = ["AliasMove", "EvaluationRecord", "Ledger", "RoundRecord", "RoundState"]

FinalState = Literal["accepted", "rejected", "failed"]
PRODUCTION = "production"
REPORTED = ("accepted", "rejected", "failed")
"""States of attempts that have a report."""


class Ledger:
    """All reads and writes of one campaign's store. Every method is one transaction."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        self._database = Database(url)
        self._clock = clock

    @property
    def database(self) -> Database:
        """Database of the ledger; the inbox is in the same."""
        return self._database

    def has_campaign(self) -> bool:
        """Tell if a campaign was begun in this ledger; feedback may lie in one that none has yet."""
        with self._database.read() as connection:
            return connection.scalar(select(campaigns.c.id)) is not None

    def open_campaign(
        self,
        name: str,
        config: Mapping[str, Any],
        config_hash: str,
        *,
        read: Read = dict,
        who: str = "",
        reason: str = "",
        quiet: Collection[str] = (),
    ) -> CampaignComparison:
        """Create the campaign, continue it, or amend it; rounds without a place in the ledger get one.

        Args:
            config: JSON values, with a list under ``rounds`` whose items have a ``name``; without
                what does not change the result.
            read: applied to the stored configuration before it is compared.
            who: whoever amends the campaign, for the record; ``reason``: why.
            quiet: rounds whose coming is no amendment: they fell due.

        Raises:
            StoreError: the store holds another campaign, or verdicts rest on what has changed; every such
                change is listed, and nothing is written.
        """
        with self._database.write() as connection:
            digest_earlier(connection)
            return open_campaign_row(
                connection,
                name,
                config,
                config_hash,
                where=self._database.where,
                now=self._now(),
                read=read,
                who=who,
                reason=reason,
                quiet=quiet,
            )

    def compare_campaign(
        self,
        name: str,
        config: Mapping[str, Any],
        config_hash: str,
        *,
        read: Read = dict,
        quiet: Collection[str] = (),
        where: str | None = None,
    ) -> CampaignComparison:
        """Compare as `open_campaign` does, without writing or refusing anything.

        Args:
            where: place of the ledger in errors; None: where it lies.

        Raises:
            StoreError: the store holds another campaign.
        """
        new = json.loads(json.dumps(config))
        where = where or self._database.where
        with self._database.read() as connection:
            return compared(connection, name, new, config_hash, where=where, read=read, quiet=quiet)

    def rounds(self) -> list[RoundRecord]:
        """Return the latest attempt of every round that was not dropped, in order."""
        return list(self._database.follow("rounds", self._latest))

    def attempts(self) -> list[RoundRecord]:
        """Return every attempt at every round in order, failed ones included.

        A skipped or dropped round ends with an attempt in that state.
        """
        return list(self._database.follow("attempts", self._attempts))

    def _latest(self, connection: Connection) -> list[RoundRecord]:
        attempts = self._database.followed(connection, "attempts", self._attempts)
        latest = {record.index: record for record in attempts}
        return [latest[i] for i in sorted(latest) if latest[i].state != "dropped"]

    def _attempts(self, connection: Connection) -> list[RoundRecord]:
        columns = [column for column in rounds.c if column.name != "report"]
        query = select(*columns).order_by(rounds.c.index, rounds.c.attempt)
        records = [self._record(row) for row in connection.execute(query)]
        skipped = set(connection.scalars(select(due_skips.c.round)))
        dropped = set(connection.scalars(select(round_drops.c.index)))
        last = {record.index: record.attempt for record in records}

        def ended(record: RoundRecord) -> RoundRecord:
            if record.attempt < last[record.index]:
                return record
            if record.index in dropped:
                return replace(record, state="dropped")
            return replace(record, state="skipped") if record.name in skipped else record

        if not (skipped or dropped):
            return records
        return [ended(record) for record in records]

    def _record(self, row: Row[Any]) -> RoundRecord:
        """Make the record of an attempt, whose report is read when somebody looks into it."""
        index, attempt, name, state, parent, candidate, started, ended = tuple(row)
        report = StoredReport(self._database, index, attempt) if state in REPORTED else None
        return RoundRecord(
            index=index, attempt=attempt, name=name, state=state, parent=parent,
            candidate=candidate, report=report, started=started, ended=ended,
        )  # fmt: skip

    def closed(self) -> frozenset[str]:
        """Return rounds with a verdict, and those that a person skipped, perhaps before they were
        planned."""
        return self._database.follow("closed", _closed)

    def begin_round(self, index: int, name: str, parent: SnapshotId) -> int:
        """Start a planned, failed or interrupted round; from now on only this attempt may write it.

        Raises:
            StaleAttempt: ``parent`` is not what production names, or a person skipped the round.
            ValueError: no such round, it has a verdict, or another round is under way.
        """
        with self._database.write() as connection:
            last = _latest(connection, index)
            if last.name != name:
                raise ValueError(f"round {index} is {last.name!r}, not {name!r}")
            if last.state in ("accepted", "rejected"):
                raise ValueError(f"round {name!r} is {last.state}; a verdict is final")
            if connection.scalar(select(round_drops.c.seq).where(round_drops.c.index == index)):
                raise StaleAttempt(
                    f"round {name!r} was dropped, and is not run",
                    cause="a person dropped it while this runner was on its way to it",
                    remedy="run again: the runner goes on with what comes after it",
                )
            if connection.scalar(select(due_skips.c.seq).where(due_skips.c.round == name)):
                raise StaleAttempt(
                    f"round {name!r} was skipped, and is not run",
                    cause="a person passed it over while this runner was on its way to it",
                    remedy="run again: the runner goes on with what comes after it",
                )
            live = select(rounds.c.name).where(rounds.c.state.in_(("running", "gating")))
            if other := connection.scalar(live.where(rounds.c.index != index)):
                raise ValueError(f"round {other!r} is under way; finish it before {name!r}")
            self._check_production(connection, parent, f"round {name!r}")
            if last.state in ("running", "gating"):
                self._set(connection, last, state="failed", report=INTERRUPTED, ends=True)
            attempt = int(last.attempt) + 1
            connection.execute(
                insert(rounds).values(
                    index=index,
                    attempt=attempt,
                    name=name,
                    state="running",
                    parent=parent,
                    started=self._now(),
                )
            )
        return attempt

    def enter_gating(self, index: int, attempt: int, candidate: SnapshotId) -> None:
        """Record that training is over and ``candidate``, a recorded snapshot, is to be judged.

        A repaired candidate enters again, in place of the one that failed.
        """
        with self._database.write() as connection:
            row = _owned(connection, index, attempt)
            if row.state not in ("running", "gating"):
                raise ValueError(f"round {row.name!r} is {row.state}, not running")
            _require_snapshot(connection, candidate)
            self._set(connection, row, state="gating", candidate=candidate)

    def commit_round(
        self,
        index: int,
        attempt: int,
        verdict: FinalState,
        candidate: SnapshotId | None,
        report: Mapping[str, Any],
    ) -> None:
        """Give the verdict and, when accepted, move production: both or neither.

        Only a policy becomes production: an accepted reward model leaves it where it is. What the round
        took from the inbox is spent in the same transaction.

        Raises:
            StaleAttempt: a newer attempt exists, or production moved since the round began.
            ValueError: not the candidate that entered the gate, or no round that can end like this.
        """
        with self._database.write() as connection:
            row = _owned(connection, index, attempt)
            kind = select(snapshots.c.kind).where(snapshots.c.id == row.candidate)
            allowed = ("running", "gating") if verdict == "failed" else ("gating",)
            if verdict not in ("accepted", "rejected", "failed") or row.state not in allowed:
                raise ValueError(f"round {row.name!r} is {row.state} and cannot become {verdict!r}")
            if candidate != row.candidate and not (verdict == "failed" and candidate is None):
                raise ValueError(f"round {row.name!r} is to judge {row.candidate}, got {candidate}")
            self._set(connection, row, state=verdict, report=report, ends=True)
            if verdict != "failed":
                write_digest(connection, index, attempt, report)
            consume(connection, row.name, verdict, self._now())
            if verdict == "accepted":
                self._check_production(connection, row.parent, f"round {row.name!r}")
            if verdict == "accepted" and connection.scalar(kind) != "reward":
                reason = f"round {row.name!r} was accepted"
                self._move(connection, PRODUCTION, row.parent, row.candidate, index, reason)

    def alias(self, name: str) -> SnapshotId | None:
        """Return the snapshot that the alias names now; None before its first move."""
        with self._database.read() as connection:
            return _alias(connection, name)

    def alias_moves(self) -> list[AliasMove]:
        """List every move of an alias, oldest first."""
        return list(self._database.follow("alias moves", _moves))

    def first_production(self) -> SnapshotId:
        """Return the snapshot that the campaign started from."""
        first = select(alias_moves.c.target).order_by(alias_moves.c.seq).limit(1)
        with self._database.read() as connection:
            return SnapshotId(connection.execute(first).scalar_one())

    def set_alias_initial(self, name: str, snapshot: SnapshotId) -> None:
        """Name the recorded snapshot a campaign starts from; possible once, before any round."""
        with self._database.write() as connection:
            if current := _alias(connection, name):
                raise ValueError(f"{name} already names {current}; only an accepted round moves it")
            _require_snapshot(connection, snapshot)
            self._move(connection, name, None, snapshot, None, "start of the campaign")

    def move_production(self, target: SnapshotId, expected: SnapshotId, reason: str) -> None:
        """Move production by a person's own choice, from ``expected`` to an accepted candidate.

        Raises:
            ValueError: no round accepted it, or production is elsewhere.
        """
        accepted = and_(rounds.c.state == "accepted", rounds.c.candidate == target)
        with self._database.write() as connection:
            index = connection.scalar(select(rounds.c.index).where(accepted))
            self._move(connection, PRODUCTION, expected, target, index, reason)

    def record_snapshot(self, snapshot: Snapshot) -> None:
        """Make a published snapshot known; only known ones are judged. Repeating is harmless."""
        provenance = snapshot.manifest.provenance
        with self._database.write() as connection:
            if connection.scalar(select(snapshots.c.id).where(snapshots.c.id == snapshot.id)):
                note_returned(connection, snapshot.id, self._now())
                return
            connection.execute(
                insert(snapshots).values(
                    id=snapshot.id,
                    kind=snapshot.kind,
                    parent=provenance.parent,
                    round=provenance.round,
                    bytes=snapshot.manifest.blob_bytes,
                    manifest=snapshot.manifest.to_bytes().decode(),
                    recorded=self._now(),
                )
            )

    def snapshots(self) -> list[SnapshotRecord]:
        """List every snapshot on record, oldest first."""
        columns = [snapshots.c[field] for field in SnapshotRecord.__dataclass_fields__]
        with self._database.read() as connection:
            rows = connection.execute(select(*columns).order_by(snapshots.c.recorded))
            return [SnapshotRecord(**row._mapping) for row in rows]

    @property
    def collections(self) -> CollectionLog:
        """Record of the snapshots whose files were removed on purpose."""
        return CollectionLog(self._database)

    def collected(self) -> frozenset[SnapshotId]:
        """Return the snapshots whose files were removed on purpose."""
        return self._database.follow("collected", collected_in)

    def collect(self, removed: Iterable[tuple[SnapshotId, int, str]]) -> None:
        """Record that snapshots will be removed, each with its bytes and the reason."""
        with self._database.write() as connection:
            note_collected(connection, removed, self._now())

    def record_evaluation(
        self, snapshot: SnapshotId, suite: str, suite_hash: str, path: str, n: int, mean: float
    ) -> None:
        """Note where results lie. Repeating is harmless; other results for a pair are refused.

        Raises:
            ValueError: the snapshot is not recorded, or the pair has other results: a verdict may
                rest on them.
        """
        with self._database.write() as connection:
            _require_snapshot(connection, snapshot)
            there = connection.execute(_evaluation(snapshot, suite_hash)).one_or_none()
            if there is None:
                connection.execute(
                    insert(evaluations).values(
                        snapshot=snapshot,
                        suite=suite,
                        suite_hash=suite_hash,
                        path=path,
                        n=n,
                        mean=mean,
                        recorded=self._now(),
                    )
                )
            elif (there.path, there.n, there.mean) != (path, n, mean):
                raise ValueError(f"{snapshot} already has results on suite {suite!r}: {there.path}")

    def replace_evaluation(
        self, snapshot: SnapshotId, suite_hash: str, n: int, mean: float
    ) -> None:
        """Note what a file that was lost or changed came to when it was measured again."""
        this = (evaluations.c.snapshot == snapshot, evaluations.c.suite_hash == suite_hash)
        with self._database.write() as connection:
            connection.execute(update(evaluations).where(*this).values(n=n, mean=mean))

    def extend_evaluation(
        self, snapshot: SnapshotId, suite_hash: str, path: str, n: int, mean: float
    ) -> None:
        """Note a file that holds the same results and those of further items.

        Raises:
            ValueError: it has no more items than the file on record.
        """
        with self._database.write() as connection:
            there = connection.execute(_evaluation(snapshot, suite_hash)).one()
            if n <= there.n:
                raise ValueError(f"{there.path} has {there.n} items, and {path} no more: {n}")
            this = (evaluations.c.snapshot == snapshot, evaluations.c.suite_hash == suite_hash)
            values = {"path": path, "n": n, "mean": mean}
            connection.execute(update(evaluations).where(*this).values(**values))

    def measured_suites(self) -> frozenset[str]:
        """Return the hashes of all suites that some snapshot was measured on."""
        with self._database.read() as connection:
            return frozenset(connection.scalars(select(evaluations.c.suite_hash).distinct()))

    def newest_evaluations(self, snapshot: SnapshotId, count: int) -> list[EvaluationRecord]:
        """List so many evaluations of one snapshot, the newest first."""
        this = _evaluations().where(evaluations.c.snapshot == snapshot)
        query = this.order_by(evaluations.c.recorded.desc(), evaluations.c.suite).limit(count)
        with self._database.read() as connection:
            return [EvaluationRecord(**row._mapping) for row in connection.execute(query)]

    def evaluations(self, snapshot: SnapshotId | None = None) -> list[EvaluationRecord]:
        """List the evaluations of one snapshot, or all, in the order of recording."""
        query = _evaluations().order_by(evaluations.c.recorded, evaluations.c.suite)
        if snapshot is not None:
            query = query.where(evaluations.c.snapshot == snapshot)
        with self._database.read() as connection:
            return [EvaluationRecord(**row._mapping) for row in connection.execute(query)]

    def unhashed_evaluations(self) -> list[EvaluationRecord]:
        """List the evaluations whose file has no hash on record, in the order of recording."""
        hashed = select(stored_files.c.seq).where(stored_files.c.path == evaluations.c.path)
        query = select(evaluations).where(~hashed.exists())
        query = query.order_by(evaluations.c.recorded, evaluations.c.suite)
        with self._database.read() as connection:
            return [EvaluationRecord(**row._mapping) for row in connection.execute(query)]

    def evaluation_paths(self, paths: Collection[str]) -> set[str]:
        """Return those of some paths that are files of evaluations."""
        names = sorted(paths)
        with self._database.read() as connection:
            return {
                path
                for start in range(0, len(names), 500)
                for path in connection.scalars(
                    select(evaluations.c.path).where(
                        evaluations.c.path.in_(names[start : start + 500])
                    )
                )
            }

    def evaluations_on(self, suite_hashes: Collection[str]) -> list[EvaluationRecord]:
        """List the evaluations on exactly these suites, in the order of recording."""
        query = _evaluations().where(evaluations.c.suite_hash.in_(suite_hashes))
        query = query.order_by(evaluations.c.recorded, evaluations.c.suite)
        with self._database.read() as connection:
            return [EvaluationRecord(**row._mapping) for row in connection.execute(query)]

    def find_evaluation(self, snapshot: SnapshotId, suite_hash: str) -> EvaluationRecord | None:
        """Find the results of exactly this snapshot on exactly this suite, if there are any."""
        with self._database.read() as connection:
            row = connection.execute(_evaluation(snapshot, suite_hash)).one_or_none()
        return None if row is None else EvaluationRecord(**row._mapping)

    def lease(
        self,
        owner: str = "keel run",
        *,
        expiry_s: float = EXPIRY_S,
        note: Note = logged,
    ) -> AbstractContextManager[Lease]:
        """Hold the store as its only runner for a block; StoreBusy while another one lives.

        Args:
            expiry_s: silence after which this runner counts as dead for others that cannot look at it.
            note: told if a silent runner has to be waited for.
        """
        claimant = Claimant(owner=owner, expiry_s=expiry_s, clock=self._clock, note=note)
        return leased(self._database, claimant)

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")

    def _set(
        self,
        connection: Connection,
        row: Row[Any],
        *,
        state: RoundState,
        candidate: SnapshotId | None = None,
        report: Mapping[str, Any] | None = None,
        ends: bool = False,
    ) -> None:
        """Change one attempt; what is None stays as it is."""
        values: dict[str, Any] = {"state": state, "candidate": candidate}
        if report is not None:
            values["report"] = json.dumps(report, sort_keys=True)
        if ends:
            values["ended"] = self._now()
        this = and_(rounds.c.index == row.index, rounds.c.attempt == row.attempt)
        set_values = {key: value for key, value in values.items() if value is not None}
        connection.execute(update(rounds).where(this).values(set_values))

    def _check_production(
        self, connection: Connection, parent: SnapshotId | None, who: str
    ) -> None:
        current = _alias(connection, PRODUCTION)
        if current is None or current != parent:
            raise StaleAttempt(
                f"{who} starts from {parent}, but production is {current}",
                where=self._database.where,
                cause="another runner moved production, or its start was never set",
                remedy="run again: the round will start from what is production now",
            )

    def _move(
        self,
        connection: Connection,
        alias: str,
        previous: SnapshotId | None,
        target: SnapshotId,
        index: int | None,
        reason: str,
    ) -> None:
        """Move an alias, here and nowhere else; any move but the first needs the accept record."""
        accept = and_(
            rounds.c.index == index, rounds.c.state == "accepted", rounds.c.candidate == target
        )
        if _alias(connection, alias) != previous:
            raise ValueError(f"{alias} does not name {previous}")
        if previous is not None and not connection.scalar(select(func.count()).where(accept)):
            raise ValueError(f"{alias} cannot move to {target}: no round accepted it")
        connection.execute(
            insert(alias_moves).values(
                alias=alias,
                previous=previous,
                target=target,
                round=index,
                reason=reason,
                time=self._now(),
            )
        )


def _closed(connection: Connection) -> frozenset[str]:
    decided = select(rounds.c.name).where(rounds.c.state.in_(("accepted", "rejected")))
    skipped = connection.scalars(select(due_skips.c.round))
    return frozenset([*connection.scalars(decided), *skipped])


def _moves(connection: Connection) -> list[AliasMove]:
    rows = connection.execute(select(alias_moves).order_by(alias_moves.c.seq))
    return [AliasMove(**row._mapping) for row in rows]


def _latest(connection: Connection, index: int) -> Row[Any]:
    query = select(rounds).where(rounds.c.index == index).order_by(rounds.c.attempt.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise ValueError(f"the campaign has no round {index}")
    return row


def _owned(connection: Connection, index: int, attempt: int) -> Row[Any]:
    """Return the latest attempt, which must be the caller's."""
    row = _latest(connection, index)
    if row.attempt != attempt:
        raise StaleAttempt(
            f"attempt {attempt} of round {row.name!r} was replaced by attempt {row.attempt}",
            cause="this process was taken for dead and another runner began the round again",
            remedy="let the other runner finish; nothing of this attempt was written",
        )
    return row


def _alias(connection: Connection, name: str) -> SnapshotId | None:
    moves = select(alias_moves.c.target).where(alias_moves.c.alias == name)
    return connection.scalar(moves.order_by(alias_moves.c.seq.desc()).limit(1))


def _evaluation(snapshot: SnapshotId, suite_hash: str) -> Select[Any]:
    return _evaluations().where(
        evaluations.c.snapshot == snapshot, evaluations.c.suite_hash == suite_hash
    )


def _evaluations() -> Select[Any]:
    """Select evaluations, each with the hash on record for its file."""
    hashes = select(stored_files.c.sha256).where(stored_files.c.path == evaluations.c.path)
    newest = hashes.order_by(stored_files.c.seq.desc()).limit(1).scalar_subquery()
    return select(evaluations, newest.label("sha256"))


def _require_snapshot(connection: Connection, snapshot: SnapshotId) -> None:
    if not connection.scalar(select(snapshots.c.id).where(snapshots.c.id == snapshot)):
        raise ValueError(f"snapshot {snapshot} is not in the ledger; call record_snapshot first")

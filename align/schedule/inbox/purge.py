"""Removes everything a person sent: from the inbox and its files, from replay buffers and rollout tables.

What a model has learnt stays in its weights; the record names the rounds that read the rows, and what is
left elsewhere. It holds a hash of the person's key and counts, never what was removed. Nobody runs the
campaign or sweeps the drop folder meanwhile, so nothing that was removed is written back; a purge that was
cut short is repeated as a whole.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, and_, delete, insert, select

from align.data.examples.forms import Unusable
from align.data.replay.buffer import ReplayBuffer
from align.data.replay.examples import OwnedExamples
from align.data.replay.history import PromptHistory
from align.data.retirement import Retirement
from align.data.stored_answers import load_answers, save_answers
from align.errors import StoreBusy
from align.round.rollout_table import forget_prompts
from align.schedule.inbox.drop import alone, take_files
from align.schedule.inbox.inbox import Inbox, StoredRow, stored_row
from align.schedule.inbox.rows import StreamForm
from align.schedule.inbox.traces import remove_files
from align.store.database.database import Database
from align.store.ledger.ledger import Ledger
from align.store.ledger.reservations import Reservation, all_reservations
from align.store.ledger.tables.inbox import inbox_purges, inbox_reservations, inbox_rows
from align.store.paths import StorePaths
from align.store.store import Store
from align.store.stored_files import StoredFiles
from rollouts.prompts import content_id

LINE = re.compile(r"(:| row )\d+$")
"""Line or row number behind the name of a file in a row's source."""
WAIT_S = 60.0
"""Seconds that a sweep under way is waited for."""
LOG = "ledger.db-wal: another process reads the ledger; purge again when it is done"


@dataclass(frozen=True, kw_only=True, slots=True)
class Purge:
    """The record of one purge."""

    user_sha256: str
    num_rows: int
    """Rows removed from the inbox, quarantined ones included."""
    num_replayed: int
    """Prompts and examples removed from replay buffers."""
    num_rollouts: int = 0
    """Answers to those prompts that were removed, with them, from the tables of steps."""
    files: tuple[str, ...]
    """Files that were swept from the drop folder and removed now, with their reports."""
    remains: tuple[str, ...] = ()
    """Files that may still hold something of them, and why."""
    sources: tuple[str, ...]
    """Origins of the rows: files outside the store are for their owner to remove."""
    rounds: tuple[str, ...]
    """Finished rounds that have read some of the rows."""
    restarted: tuple[str, ...]
    """Unfinished rounds that have: they take again, and begin from the start."""
    time: str
    """ISO 8601, UTC."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """The part of a record that lies outside the database."""

    num_replayed: int
    num_rollouts: int
    files: tuple[str, ...]
    remains: tuple[str, ...]


def purge(store: Store, forms: Mapping[str, StreamForm], user: str) -> Purge:
    """Remove what ``user`` sent to any stream, and write that down.

    Raises:
        StoreBusy: a runner holds the campaign, or another process the drop folder.
    """
    ledger, paths = store.ledger, store.paths
    inbox = paths.inbox.folder
    with ledger.lease("keel feedback purge"), alone(inbox, wait_s=WAIT_S) as is_alone:
        if not is_alone:
            raise StoreBusy(
                f"another process has read the drop folder for {WAIT_S:g} s",
                where=str(paths.inbox.drop),
                remedy="purge again when it is done",
            )
        store.pull()
        # What is left in the drop folder would come back with the next sweep.
        take_files(inbox, Inbox(ledger.database), forms)
        with ledger.database.read() as connection:
            rows = _rows(connection, user)
        prompts = {name for row in rows for name in _prompt_ids(row, forms)}
        replayed = sum(_forget(file, prompts, store.files) for file in paths.stored_prompts())
        for file in paths.stored_examples():
            replayed += _forget_examples(file, prompts, store.files)
        for file in paths.stored_answers():
            replayed += _forget_answers(file, prompts, store.files)
        for file in paths.stored_histories():
            _forget_history(file, prompts, store.files)
        for file in paths.stored_retirements():
            _forget_retired(file, prompts, store.files)
        rollouts = forget_prompts(paths.rounds, prompts)
        store.copy_rewritten(table.parent for table in rollouts)
        files, left = remove_files(inbox, user)
        remains = list(left)  # And copies that cannot be reached from here.
        with ledger.database.read() as connection:
            readers = {reservation.round for reservation in _readers(connection, rows)}
        remains += _rankings(paths, readers)
        if store.is_remote:
            remains.append("the caches of this store on other machines, until they open it again")
        if not _is_sqlite(ledger.database):
            remains.append("the pages of the database server, until it vacuums inbox_rows")
        traces = _Found(
            num_replayed=replayed,
            num_rollouts=sum(rollouts.values()),
            files=tuple(files),
            remains=tuple(remains),
        )
        with ledger.database.write() as connection:
            done = _remove(connection, user, traces)
        folded = _fold_log(ledger.database)
        # Backups from before still have the rows.
        store.renew_backups()
        if folded:
            return done
        return replace(done, remains=(*done.remains, LOG))


def purges(ledger: Ledger) -> list[Purge]:
    """List every purge on record, oldest first."""
    with ledger.database.read() as connection:
        records = connection.execute(select(inbox_purges).order_by(inbox_purges.c.seq)).all()
    done: list[Purge] = []
    for row in records:
        report: dict[str, Any] = json.loads(row.report)
        lists = {name: tuple(value) for name, value in report.items() if isinstance(value, list)}
        done.append(Purge(user_sha256=row.user_sha256, time=row.time, **{**report, **lists}))
    return done


def _rows(connection: Connection, user: str) -> list[StoredRow]:
    wanted = select(inbox_rows).where(inbox_rows.c.user_key == user)
    return [stored_row(row) for row in connection.execute(wanted)]


def _prompt_ids(row: StoredRow, forms: Mapping[str, StreamForm]) -> Iterable[str]:
    """Yield the names under which replay buffers keep the prompt of a row."""
    form = forms.get(row.stream)
    if form is None:
        return ()
    with suppress(Unusable):
        return [content_id(example.prompt) for example in form.examples(row.payload)]
    return ()


def _forget(file: Path, prompts: set[str], stored: StoredFiles) -> int:
    """Rewrite a replay buffer without some prompts; how many it held.

    A file that was changed before stays one: only a sound one gets a new hash.
    """
    entries = ReplayBuffer.load(file).entries
    remaining = {
        name: [p for p in prompts_of_round if p.id not in prompts]
        for name, prompts_of_round in entries.items()
    }
    removed = sum(map(len, entries.values())) - sum(map(len, remaining.values()))
    if removed:
        _rewrite(file, ReplayBuffer(remaining), stored)
    return removed


def _forget_examples(file: Path, prompts: set[str], stored: StoredFiles) -> int:
    """Rewrite kept examples without those of some prompts; return how many it held."""
    stored_examples = OwnedExamples.load(file)
    remaining = stored_examples.without(prompts)
    removed = len(stored_examples.units) - len(remaining.units)
    if removed:
        _rewrite(file, remaining, stored)
    return removed


def _forget_answers(file: Path, prompts: set[str], stored: StoredFiles) -> int:
    """Rewrite stored answers without those to some prompts; return how many it held."""
    groups = load_answers(file)
    remaining = [group for group in groups if group.prompt.id not in prompts]
    if len(remaining) < len(groups):
        _rewritten(file, partial(save_answers, file, remaining), stored)
    return len(groups) - len(remaining)


def _rankings(paths: StorePaths, readers: Collection[str]) -> Iterator[str]:
    """Yield the artifacts that hold ranked answers, as tokens, of rounds that have read a person's rows."""
    from safetensors import safe_open

    for path in sorted(paths.stored_rankings()) if readers else ():
        with safe_open(path, "np") as opened:
            rounds = {key.rpartition("/")[0] for key in opened.keys()}  # noqa: SIM118
        if shared := sorted(rounds & set(readers)):
            yield (
                f"{paths.relative(path)}: ranked answers of {', '.join(shared)}, which retention copr "
                "holds later rounds to"
            )


def _forget_history(file: Path, prompts: set[str], stored: StoredFiles) -> None:
    """Rewrite a history of prompts without those of a person."""
    history = PromptHistory.load(file)
    remaining = history.without(prompts)
    if remaining.known != history.known:
        _rewrite(file, remaining, stored)


def _forget_retired(file: Path, prompts: set[str], stored: StoredFiles) -> None:
    """Rewrite a record of what a round overrides without the prompts of a person."""
    retirement = Retirement.load(file)
    if (remaining := retirement.without(prompts)) != retirement:
        _rewrite(file, remaining, stored)


def _rewrite(
    file: Path,
    content: ReplayBuffer | OwnedExamples | PromptHistory | Retirement,
    stored: StoredFiles,
) -> None:
    """Save a file again, see `_rewritten`."""
    _rewritten(file, partial(content.save, file), stored)


def _rewritten(file: Path, save: Callable[[], None], stored: StoredFiles) -> None:
    """Write a file again; only one that was sound before gets a new hash."""
    sound = stored.hash_of(file) is not None and stored.fault_of(file) is None
    save()
    if sound:
        stored.record([file], "rewritten by keel feedback purge")


def _fold_log(database: Database) -> bool:
    """Empty SQLite's log, which keeps what was written before; return True if nobody was in the way."""
    if not _is_sqlite(database):
        return True
    connection = database.engine.raw_connection()  # A checkpoint is no part of a transaction.
    try:
        busy, *_ = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy
    finally:
        connection.close()


def _is_sqlite(database: Database) -> bool:
    return database.engine.dialect.name == "sqlite"


def _readers(connection: Connection, rows: Sequence[StoredRow]) -> list[Reservation]:
    """List the reservations of rounds that have read some of these rows."""
    numbers = {(row.stream, row.number) for row in rows if row.state == "ready"}
    return [
        reservation
        for reservation in all_reservations(connection)
        if any(
            s == reservation.stream and reservation.above < n <= reservation.newest
            for s, n in numbers
        )
    ]


def _remove(connection: Connection, user: str, traces: _Found) -> Purge:
    rows = _rows(connection, user)
    touched = _readers(connection, rows)
    restarted = tuple(reservation.round for reservation in touched if reservation.state == "held")
    reserved = and_(inbox_reservations.c.round.in_(restarted), inbox_reservations.c.state == "held")
    connection.execute(delete(inbox_reservations).where(reserved))
    connection.execute(delete(inbox_rows).where(inbox_rows.c.user_key == user))
    record = Purge(
        user_sha256=hashlib.sha256(user.encode()).hexdigest(),
        num_rows=len(rows),
        sources=tuple(sorted({LINE.sub("", row.source) for row in rows})),
        **asdict(traces),
        rounds=tuple(reservation.round for reservation in touched if reservation.state != "held"),
        restarted=restarted,
        time=datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds"),
    )
    report = {k: v for k, v in asdict(record).items() if k not in ("user_sha256", "time")}
    connection.execute(
        insert(inbox_purges).values(
            user_sha256=record.user_sha256, report=json.dumps(report), time=record.time
        )
    )
    return record

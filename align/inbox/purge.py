"""Removes everything a person sent: from the inbox, from replay buffers and from processed files.

What a model has learnt stays in its weights; the record names the rounds that read the rows. It holds a
hash of the person's key and counts, never what was removed. Nobody runs the campaign meanwhile, so no
round can write a removed prompt back; a purge that was cut short is repeated as a whole.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, and_, delete, insert, select

from align.examples.forms import Unusable
from align.inbox.feedback import StreamForm
from align.inbox.inbox import StoredRow, stored_row
from align.memory.inbox_tables import inbox_purges, inbox_rows, inbox_takes
from align.memory.ledger import Ledger
from align.memory.mirror import ONE_SIDED, Mirror
from align.memory.replay import ReplayBuffer
from align.memory.takes import all_takes
from rollouts.prompts import content_id

LINE = re.compile(r"(:| row )\d+$")
"""What follows the name of a file in a row's source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Purge:
    """The record of one purge."""

    user_sha256: str
    num_rows: int
    """Rows removed from the inbox, quarantined ones included."""
    num_replayed: int
    """Prompts removed from replay buffers."""
    files: tuple[str, ...]
    """Processed files of the drop folder that were removed; their other rows are in the inbox."""
    sources: tuple[str, ...]
    """Where the rows came from: files outside the store are for their owner to remove."""
    rounds: tuple[str, ...]
    """Finished rounds that have read some of the rows."""
    restarted: tuple[str, ...]
    """Unfinished rounds that have: they take again, and begin from the start."""
    time: str
    """ISO 8601, UTC."""


def purge(
    ledger: Ledger,
    folder: Path,
    forms: Mapping[str, StreamForm],
    user: str,
    mirror: Mirror = ONE_SIDED,
) -> Purge:
    """Remove what ``user`` sent to any stream, and write that down.

    Args:
        folder: the store, or the cache of one with a URL.
        mirror: the far side of that one.

    Raises:
        StoreBusy: a runner holds the campaign.
    """
    with ledger.claim("keel feedback purge"):
        mirror.pull()
        with ledger.database.read() as connection:
            rows = _rows(connection, user)
        prompts = {name for row in rows for name in _prompt_ids(row, forms)}
        num_replayed = sum(_forget(file, prompts) for file in (folder / "replay").glob("*.jsonl"))
        mirror.push()
        sources = sorted({LINE.sub("", row.source) for row in rows})
        files = _remove_files(folder / "inbox" / "done", sources)
        with ledger.database.write() as connection:
            return _remove(connection, user, num_replayed, files, sources)


def purges(ledger: Ledger) -> list[Purge]:
    """Every purge on record, oldest first."""
    with ledger.database.read() as connection:
        found = connection.execute(select(inbox_purges).order_by(inbox_purges.c.seq)).all()
    return [_purge(row) for row in found]


def _purge(row: Any) -> Purge:
    report: dict[str, Any] = json.loads(row.report)
    plain: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in report.items()
    }
    return Purge(user_sha256=row.user_sha256, time=row.time, **plain)


def _rows(connection: Connection, user: str) -> list[StoredRow]:
    wanted = select(inbox_rows).where(inbox_rows.c.user_key == user)
    return [stored_row(row) for row in connection.execute(wanted)]


def _prompt_ids(row: StoredRow, forms: Mapping[str, StreamForm]) -> Iterable[str]:
    """The names under which replay buffers keep what a row asks."""
    form = forms.get(row.stream)
    if form is None:
        return ()
    with suppress(Unusable):
        return [content_id(example.prompt) for example in form.examples(row.payload)]
    return ()


def _forget(file: Path, prompts: set[str]) -> int:
    """Rewrite a replay buffer without some prompts; how many it held."""
    if file.name.startswith("answers-"):
        return 0
    entries = ReplayBuffer.load(file).entries
    kept = {name: [p for p in held if p.id not in prompts] for name, held in entries.items()}
    removed = sum(map(len, entries.values())) - sum(map(len, kept.values()))
    if removed:
        ReplayBuffer(kept).save(file)
    return removed


def _remove_files(done: Path, sources: Iterable[str]) -> list[str]:
    """Delete processed files under these names, with their reports."""
    removed = []
    for source in sources:
        for file in sorted(done.glob("*/*")):
            if file.name.partition("-")[2] in (source, f"{source}.report.json"):
                file.unlink(missing_ok=True)
                removed.append(str(file.relative_to(done.parent)))
    return removed


def _remove(
    connection: Connection, user: str, num_replayed: int, files: list[str], sources: list[str]
) -> Purge:
    rows = _rows(connection, user)
    numbers = {(row.stream, row.number) for row in rows if row.state == "ready"}
    touched = [
        take
        for take in all_takes(connection)
        if any(s == take.stream and take.above < n <= take.newest for s, n in numbers)
    ]
    restarted = tuple(take.round for take in touched if take.state == "held")
    held = and_(inbox_takes.c.round.in_(restarted), inbox_takes.c.state == "held")
    connection.execute(delete(inbox_takes).where(held))
    connection.execute(delete(inbox_rows).where(inbox_rows.c.user_key == user))
    record = Purge(
        user_sha256=hashlib.sha256(user.encode()).hexdigest(),
        num_rows=len(rows),
        num_replayed=num_replayed,
        files=tuple(files),
        sources=tuple(sources),
        rounds=tuple(take.round for take in touched if take.state != "held"),
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

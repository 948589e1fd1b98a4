"""A folder that other programs put files into: ``STORE/inbox/drop/STREAM/rows.jsonl`` or ``.parquet``.

A file is taken when it has its name: write it as ``.rows.jsonl`` or ``rows.jsonl.part`` and rename it when
it is complete. It is stored as a whole or not at all, then moved to ``done/``, or to ``failed/`` where it
cannot be read, with a report beside it. A crash between storing and moving reads the file again, and every
row of it is a duplicate then. Files that lie in ``drop/`` itself belong to the campaign's only stream.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import time

from align.inbox.deal import Receipt
from align.inbox.feedback import USER, Feedback, StreamForm, form_of
from align.inbox.inbox import Inbox
from align.memory.durable import write_atomic
from rollouts.errors import UserError
from rollouts.rows import READERS, read_rows

REASONS = 20
"""Quarantined rows that a report names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Intake:
    """What became of a file."""

    file: str
    stream: str | None
    stored: int = 0
    duplicates: int = 0
    quarantined: int = 0
    conflicts: int = 0
    """Rows whose key came with another row before."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why rows are quarantined, by place; the first of them."""
    error: str | None = None
    """Why the file could not be taken at all."""


def add_file(inbox: Inbox, form: StreamForm, file: Path, *, user_column: str = USER) -> Intake:
    """Store a file's rows, all or none; what no round could use is quarantined with its reason.

    Raises:
        UserError: the file cannot be read; nothing was stored.
    """
    rows = _rows(form, file, user_column)
    if not rows:
        raise UserError("holds no rows", where=str(file))
    return _intake(file.name, form.stream, rows, inbox.add(form.stream, rows))


def sweep(
    folder: Path, inbox: Inbox, forms: Mapping[str, StreamForm], *, user_column: str = USER
) -> list[Intake]:
    """Take every complete file of the drop folder; one process does it at a time, others find nothing."""
    found: list[Intake] = []
    with _alone(folder) as mine:
        for file in _complete(folder / "drop") if mine else ():
            stream = None if file.parent.name == "drop" else file.parent.name
            try:
                intake = add_file(inbox, form_of(forms, stream), file, user_column=user_column)
            except UserError as error:
                if not file.exists():
                    continue
                intake = Intake(file=file.name, stream=stream, error=str(error))
            _put_away(folder, file, intake)
            found.append(intake)
    return found


def make_drop(folder: Path, forms: Mapping[str, StreamForm]) -> Path:
    """The drop folder with a place for every stream."""
    drop = folder / "drop"
    for stream in forms:
        (drop / stream).mkdir(parents=True, exist_ok=True)
    return drop


def _rows(form: StreamForm, file: Path, user_column: str) -> list[Feedback]:
    try:
        return [
            form.judge(row.values, Path(row.place).name, user_column=user_column)
            for row in read_rows(str(file), "train")
        ]
    except RecursionError as error:
        raise UserError("a row is nested too deeply", where=str(file)) from error


def _intake(file: str, stream: str, rows: list[Feedback], receipt: Receipt) -> Intake:
    reasons = {row.source: row.reason for row in rows if row.reason is not None}
    return Intake(
        file=file,
        stream=stream,
        stored=receipt.count("stored"),
        duplicates=receipt.count("duplicate"),
        quarantined=receipt.count("quarantined"),
        conflicts=receipt.count("conflict"),
        reasons=dict(list(reasons.items())[:REASONS]),
    )


def _complete(drop: Path) -> Iterator[Path]:
    """Files under their final names, oldest first."""
    files = [file for file in (*drop.glob("*"), *drop.glob("*/*")) if file.is_file()]
    ready = [
        file for file in files if file.suffix.lower() in READERS and not file.name.startswith(".")
    ]
    yield from sorted(ready, key=lambda file: (file.stat().st_mtime_ns, file.name))


def _put_away(folder: Path, file: Path, intake: Intake) -> None:
    """Move a file out of the way, its report first: a file in ``done`` always has one."""
    place = folder / ("done" if intake.error is None else "failed") / (intake.stream or "")
    name = f"{int(time() * 1000)}-{file.name}"
    report = json.dumps(asdict(intake), indent=1, sort_keys=True) + "\n"
    write_atomic(place / f"{name}.report.json", report.encode())
    try:
        os.replace(file, place / name)
    except FileNotFoundError:  # Somebody took it back; its rows are in.
        return


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether no other process sweeps; the lock goes with the process that holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".sweep").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True

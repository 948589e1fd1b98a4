"""A folder that other programs put files into: ``STORE/inbox/drop/STREAM/rows.jsonl`` or ``.parquet``.

A file is taken when it has its name and has not changed for `SETTLED_S`: better write it as ``.rows.jsonl``
or ``rows.jsonl.part`` and rename it when it is complete. It is stored as a whole or not at all, then moved
to ``done/``, or to ``failed/`` where it cannot be read, with a report beside it; whatever is wrong with one
file, the next one is taken. A crash between storing and moving reads the file again, and every row of it is
a duplicate then. Files that lie in ``drop/`` itself belong to the campaign's only stream.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import monotonic, sleep, time_ns

from align.schedule.inbox.inbox import Inbox
from align.schedule.inbox.rows import USER, StreamForm, form_of
from align.store import durable
from align.store.database.private import close_to_others, make_private
from align.store.paths import InboxPaths
from rollouts.errors import RunError, UserError
from rollouts.rows import READERS, read_rows

REASONS = 20
"""Quarantined rows that a report names."""
SETTLED_S = 2.0
"""A file that changed more recently is taken for one that is still being written."""
MAX_NAME = 180
"""Bytes of a file's name that are kept: file systems allow 255, and a time, ``.report.json`` and what
`write_atomic` adds are put around it."""
SURROGATES = re.compile("[\ud800-\udfff]")
"""Characters that Python makes of bytes in a file's name that are no UTF-8, among others; no Unicode."""
POLL_S = 0.05

Stamp = tuple[int, int]
"""Size in bytes and time of the last change, in ns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Intake:
    """Result of taking one file."""

    file: str
    """Name of the file, in valid Unicode and of a length that can be prefixed."""
    stream: str | None
    stored: int = 0
    duplicates: int = 0
    quarantined: int = 0
    conflicts: int = 0
    """Rows whose key came with another row before."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Reasons why rows are quarantined, by line; the first of them."""
    error: str | None = None
    """Reason why the file could not be taken, or not put away."""


def add_file(inbox: Inbox, form: StreamForm, file: Path, *, user_column: str = USER) -> Intake:
    """Store a file's rows, all or none; what no round could use is quarantined with its reason.

    Raises:
        UserError: the file cannot be read, or changes meanwhile; nothing was stored.
    """
    before = _stamp(file)
    if before is None:
        here = f"paths are relative to the current folder, {Path.cwd()}"
        raise UserError("cannot open the file: there is none", where=str(file), remedy=here)
    name = _plain(file.name)
    try:
        rows = [
            form.judge(
                row.values, name + row.location.removeprefix(str(file)), user_column=user_column
            )
            for row in read_rows(str(file), "train")
        ]
    except RecursionError as error:
        raise UserError("a row is nested too deeply", where=str(file)) from error
    if not rows:
        raise UserError("holds no rows", where=str(file))
    if _stamp(file) != before:
        remedy = "write it under another name, and rename it when it is complete"
        raise UserError("is still being written", where=str(file), remedy=remedy)
    receipt = inbox.add(form.stream, rows)
    reasons = {row.source: row.reason for row in rows if row.reason is not None}
    return Intake(
        file=name,
        stream=form.stream,
        stored=receipt.count("stored"),
        duplicates=receipt.count("duplicate"),
        quarantined=receipt.count("quarantined"),
        conflicts=receipt.count("conflict"),
        reasons=dict(list(reasons.items())[:REASONS]),
    )


def sweep(
    folder: Path, inbox: Inbox, forms: Mapping[str, StreamForm], *, user_column: str = USER
) -> list[Intake]:
    """Take every complete file of the drop folder; one process does it at a time, others find nothing.

    Raises:
        RunError: the ledger cannot be used; the files stay where they are.
    """
    with alone(folder) as is_alone:
        return take_files(folder, inbox, forms, user_column=user_column) if is_alone else []


def take_files(
    folder: Path, inbox: Inbox, forms: Mapping[str, StreamForm], *, user_column: str = USER
) -> list[Intake]:
    """Take the files of the folder as `sweep` does, for a caller that is `alone`."""
    drop = InboxPaths(folder).drop
    intakes: list[Intake] = []
    for file, before in _complete(drop):
        stream = None if file.parent == drop else _plain(file.parent.name)
        try:
            intake = add_file(inbox, form_of(forms, stream), file, user_column=user_column)
        except RunError:
            raise
        except Exception as error:  # Whatever it is, it is this file's, and others wait behind it.
            if _stamp(file) != before:
                continue
            what = (
                str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            )
            intake = Intake(file=_plain(file.name), stream=stream, error=_valid(what))
        try:
            _put_away(folder, file, intake)
        except OSError as error:
            intake = replace(intake, error=_valid(f"cannot be put away: {error}"))
        intakes.append(intake)
    return intakes


def waiting_files(folder: Path) -> list[Path]:
    """List files of the drop folder under any name that no sweep has taken so far."""
    drop = InboxPaths(folder).drop
    return sorted(file for file in (*drop.glob("*"), *drop.glob("*/*")) if file.is_file())


def make_drop(folder: Path, forms: Mapping[str, StreamForm]) -> Path:
    """Make the drop folder with a subfolder for every stream."""
    drop = InboxPaths(folder).drop
    make_private(folder.parent)
    make_private(folder)
    close_to_others(folder)
    for stream in forms:
        (drop / stream).mkdir(parents=True, exist_ok=True)
    return drop


@contextmanager
def alone(folder: Path, *, wait_s: float = 0.0) -> Iterator[bool]:
    """Wait until no other process sweeps, and yield False if one still does; the lock goes with its
    process."""
    make_private(folder)
    deadline = monotonic() + wait_s
    with InboxPaths(folder).lock.open("w") as lock:
        while not (locked := _locked(lock.fileno())) and monotonic() < deadline:
            sleep(POLL_S)
        yield locked


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _complete(drop: Path) -> list[tuple[Path, Stamp]]:
    """List settled files under their final names, oldest first."""
    now, ready = time_ns(), []
    for file in (*drop.glob("*"), *drop.glob("*/*")):
        if file.suffix.lower() not in READERS or file.name.startswith("."):
            continue
        stamp = _stamp(file)
        # A time to come is a clock's fault: such a file would never settle.
        if stamp is not None and not 0 <= now - stamp[1] < SETTLED_S * 1e9:
            ready.append((file, stamp))
    return sorted(ready, key=lambda entry: (entry[1][1], entry[0].name))


def _stamp(file: Path) -> Stamp | None:
    """Return what changes with a file; None where there is no plain one."""
    try:
        status = file.lstat()  # A link would bring in what its maker may not read.
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def _put_away(folder: Path, file: Path, intake: Intake) -> None:
    """Move a file out of the way, its report first: a file in ``done`` always has one."""
    paths = InboxPaths(folder)
    target = (paths.done if intake.error is None else paths.failed) / (intake.stream or "")
    name = f"{time_ns() // 1000}-{intake.file}"
    report = json.dumps(asdict(intake), indent=1, sort_keys=True) + "\n"
    durable.write_atomic(target / f"{name}.report.json", report.encode())
    try:
        durable.replace(file, target / name)
        # Whoever dropped it did not think of that: a line for every file says nothing.
        close_to_others(target / name, say=False)
    except FileNotFoundError:  # Somebody took it back; its rows are in.
        return


def _plain(name: str) -> str:
    """Return a file's name in valid Unicode and at most `MAX_NAME` bytes; a longer one loses its
    middle."""
    shown = _valid(name)
    stem, suffix = os.path.splitext(shown)
    room = max(0, MAX_NAME - len(suffix.encode()))
    if len(stem.encode()) > room:
        stem = stem.encode()[:room].decode("utf-8", "ignore")
    return stem + suffix


def _valid(text: str) -> str:
    return SURROGATES.sub("\ufffd", text)

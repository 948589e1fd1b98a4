"""Return of a ledger from a backup: checked before anything is replaced, and nothing is thrown away.

    restored-1/             what the restored ledger does not know, the first time: the ledger that was
                            there, folders of attempts and of checkpoints, as they lay in the store

A restored ledger knows less than the store: rounds that were decided after the backup run again, from the
same seeds, and find their snapshots where they already are.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from align.config.store import StoreSettings
from align.errors import KeelError, LedgerLost, StoreError, UserError
from align.store.backups.ledger_backups import backups_of, copy_ledger, ledger_file
from align.store.backups.lost import SERVER_REMEDY, read_backup, snapshots_in, sound_backups
from align.store.backups.whole import check_backup, count_of, return_files
from align.store.database.database import Database
from align.store.database.private import make_private
from align.store.durable import replace, sync
from align.store.ledger.ledger import Ledger
from align.store.ledger.tables.logs import collections
from align.store.lookback import first_names
from align.store.paths import StorePaths
from align.store.snapshots.snapshots import SnapshotStore
from align.store.store import open_store
from align.store.stored_files import StoredFiles
from rollouts.types import SnapshotId

LOGS = ("", "-wal", "-shm")
"""Endings of the files of a SQLite database: itself, and its log, which belongs to no other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """Ledger that was brought back."""

    backup: Path
    decided: tuple[str, ...]
    """Rounds with a verdict in the ledger now."""
    aside: Path
    """Folder of what the restored ledger does not know."""
    lost: tuple[str, ...]
    """Sentences about what came after the backup."""

    def lines(self) -> Iterator[str]:
        """Describe it to a person."""
        rounds = ", ".join(self.decided) or "none yet"
        yield f"restored {self.backup}; rounds with a verdict: {rounds}"
        if self.aside.exists():
            yield f"what was there before lies in {self.aside}"
        yield from self.lost


def restore_ledger(config: StoreSettings, backup: Path | None = None) -> Restored:
    """Put a backup in the place of a campaign's ledger.

    Args:
        backup: file of a ledger, or folder of a store, that was backed up; None: the newest backup that is
            whole, for a ledger that was lost.

    Raises:
        UserError: there is nothing to restore, or from nothing; nothing was changed.
        StoreBusy: a runner holds the ledger that is there.
    """
    file = ledger_file(config)
    if file is None:
        raise UserError(
            "the ledger lies on a database server, and is not restored from here",
            where="ledger",
            remedy=SERVER_REMEDY,
        )
    present = _present(config, file)
    source = backup or _chosen(config, present)
    folder = source if source.is_dir() else None
    backup = check_backup(source) if folder else check_source(source)
    state = read_backup(backup)
    if state.campaign != config.name:
        raise UserError(
            f"the backup is of the campaign {state.campaign!r}, and this one is {config.name!r}",
            where=str(backup),
            remedy="name a backup of this campaign with --from FILE",
        )
    if present is None:
        return _replaced(config, file, backup, folder)
    with present.lease("keel restore"):
        # SQLite removes the log of a file when its last connection closes, by its name.
        present.database.engine.dispose()
        return _replaced(config, file, backup, folder)


def _present(config: StoreSettings, file: Path) -> Ledger | None:
    """Open the ledger that is there; None if it was lost."""
    try:
        if not file.is_file() or not file.stat().st_size:
            return None
        ledger = Ledger(config.ledger_url)
        return ledger if ledger.has_campaign() and _is_whole(ledger.database) else None
    except LedgerLost:
        return None


def _is_whole(database: Database) -> bool:
    with database.read() as connection:
        return connection.exec_driver_sql("PRAGMA quick_check(1)").scalar() == "ok"


def _chosen(config: StoreSettings, present: Ledger | None) -> Path:
    """Return the newest backup that is whole.

    Raises:
        UserError: the ledger is whole, or there is no such backup.
    """
    if present is not None:
        raise UserError(
            "the ledger is whole, so there is nothing to restore",
            where=present.database.where,
            remedy="to go back to an older state all the same, name the backup with --from FILE",
        )
    backups = backups_of(config)
    newest = None if backups is None else next(sound_backups(backups), None)
    if newest is None:
        rounds = ", ".join(snapshots_in(config)) or "nothing"
        raise UserError(
            f"there is no backup of the ledger that is whole; the store has snapshots of {rounds}",
            where=str(config.folder),
            remedy="name one of your own with --from FILE; without one the verdicts are gone, while each "
            "snapshot can be the policy.model of a new campaign",
        )
    return newest[0]


def _replaced(config: StoreSettings, file: Path, backup: Path, folder: Path | None) -> Restored:
    """Move what is there aside and the backup into its place; a crash on the way leaves both files."""
    make_private(config.folder)
    make_private(file.parent)
    staged = file.with_name(f".{file.name}.restored")
    staged.unlink(missing_ok=True)
    copy_ledger(backup, staged)
    paths = StorePaths(config.folder)
    aside = paths.next_aside()
    before, collected = _rounds_in(file), _collected_since(config, file)
    for ending in LOGS:
        _move(file.with_name(file.name + ending), aside / f"{file.name}{ending}")
    replace(staged, file)
    ledger = Ledger(config.ledger_url)
    lost = [*_lost_rounds(ledger, before), *_unknown_snapshots(config, ledger)]
    lost.append(
        f"feedback that the inbox took after {read_backup(file).newest[:19]} is not in this ledger, "
        f"unless it lies in {paths.inbox.done}; send it again"
    )
    if folder is not None:
        lost += return_files(folder, open_store(config, ledger), aside)
    # After the return: a backup beside a run may have records of an attempt that its ledger has not.
    lost += _moved_aside(paths, aside, ledger)
    lost += _collected_again(config, ledger, collected)
    lost += _missing(config, ledger)
    decided = tuple(r.name for r in ledger.rounds() if r.state in ("accepted", "rejected"))
    return Restored(backup=backup, decided=decided, aside=aside, lost=tuple(lost))


def _move(source: Path, target: Path) -> None:
    if not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(source, target)
    except OSError:  # The ledger may lie on another disk than the store.
        shutil.move(source, target)
    sync(target.parent)
    sync(source.parent)


def _rounds_in(file: Path) -> dict[str, str]:
    """Return what a ledger that is replaced says of its rounds, as far as it can be read."""
    with (
        suppress(sqlite3.Error, OSError),
        closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as ledger,
    ):
        return dict(ledger.execute("SELECT name, state FROM rounds ORDER BY attempt").fetchall())
    return {}


def _collected_in(file: Path) -> list[tuple[SnapshotId, int, str]]:
    """Return the snapshots that a ledger that is replaced says were collected, as far as it can be read."""
    with (
        suppress(sqlite3.Error, OSError),
        closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as ledger,
    ):
        rows = ledger.execute(
            f"SELECT snapshot, bytes, reason, returned FROM {collections.name} ORDER BY seq"
        )
        newest = {row[0]: row for row in rows.fetchall()}
        return [row[:3] for row in newest.values() if not row[3]]
    return []


def _collected_since(config: StoreSettings, file: Path) -> list[tuple[SnapshotId, int, str]]:
    """Return what was collected by the ledger that is replaced, or where that cannot be read, by the newest
    of its backups that can."""
    backups = backups_of(config)
    newest = [] if backups is None else [path for path, _ in sound_backups(backups)]
    return next(filter(None, map(_collected_in, [file, *newest])), [])


def _collected_again(
    config: StoreSettings, ledger: Ledger, before: list[tuple[SnapshotId, int, str]]
) -> Iterator[str]:
    """Record once more what was collected after the backup, so that nothing looks back on it."""
    known = {record.id for record in ledger.snapshots()} - ledger.collected()
    known -= open_store(config, ledger).snapshots.sizes().keys()
    gone = [row for row in before if row[0] in known]
    ledger.collect(gone)
    if gone:
        names = first_names([snapshot[:12] for snapshot, _, _ in gone])
        yield f"collected after the backup: {count_of(len(gone), 'snapshot')} ({names})"


def _lost_rounds(ledger: Ledger, before: dict[str, str]) -> Iterator[str]:
    known = {record.name: record.state for record in ledger.rounds()}
    for name, state in before.items():
        if state in ("accepted", "rejected") and known.get(name) != state:
            yield f"round {name} was {state} after the backup; keel run trains and judges it again"


def _unknown_snapshots(config: StoreSettings, ledger: Ledger) -> Iterator[str]:
    known = {record.id for record in ledger.snapshots()}
    snapshots = SnapshotStore(config.folder)
    unknown = []
    for snapshot in sorted(snapshots.sizes().keys() - known):
        with suppress(KeelError):
            round = snapshots.manifest(snapshot).provenance.round
            unknown.append(f"{snapshot[:12]} of round {round or 'none'}")
    if unknown:
        yield (
            "not in this ledger, and kept until keel gc --apply for a round that makes the same weights: "
            f"{count_of(len(unknown), 'snapshot')} ({first_names(unknown)})"
        )


def _moved_aside(paths: StorePaths, aside: Path, ledger: Ledger) -> Iterator[str]:
    """Move folders of attempts that the ledger does not know, and checkpoints that it has no hash of."""
    attempts = {(r.index, r.name, r.attempt) for r in ledger.attempts()}
    hashes, moved = ledger_hashes(ledger), list[str]()
    for index, name, round in paths.round_folders():
        for number, attempt in round.numbered_attempts():
            if (index, name, number) not in attempts:
                _move(attempt.path, aside / paths.relative(attempt.path))
                moved.append(f"attempt {number} of round {name}")
        for folder in round.all_checkpoints():
            if not any(path.startswith(f"{paths.relative(folder)}/") for path in hashes):
                _move(folder, aside / paths.relative(folder))
    if moved:
        count = count_of(len(moved), "attempt")
        yield f"not in this ledger, with metrics in {aside}: {count} ({first_names(moved)})"


def ledger_hashes(ledger: Ledger) -> frozenset[str]:
    """Return the paths of all files that a ledger has hashes of."""
    return frozenset(StoredFiles(Path(), ledger.database).hashes())


def _missing(config: StoreSettings, ledger: Ledger) -> Iterator[str]:
    """Name accepted snapshots that the ledger knows and the store has not."""
    if config.is_remote:
        return
    snapshots = SnapshotStore(config.folder)
    collected = ledger.collected()
    missing = [
        f"{record.candidate[:12]} of round {record.name}"
        for record in ledger.rounds()
        if record.state == "accepted" and record.candidate and record.candidate not in collected
        if not snapshots.is_here(record.candidate)
    ]
    if missing:
        yield (
            "not in this store, to be restored from a backup: "
            f"{count_of(len(missing), 'snapshot')} ({first_names(missing)})"
        )


def check_source(path: Path) -> Path:
    """Return the file of a backup that a person named.

    Raises:
        StoreError: there is no such file.
    """
    if path.is_file():
        return path
    raise StoreError(
        "there is no such backup",
        where=str(path),
        remedy="name a file that keel backup or a round wrote, or a folder of keel backup",
    )

"""Backup of a whole store: a folder with one view of the ledger and the files that it names.

The folder is laid out as a store is, and appears once all of it is on the disk. A run may go on meanwhile:
where it replaces a file before that was copied, the copy begins again with a newer view of the ledger.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from align.config.store import sqlite_url
from align.errors import KeelError, LedgerLost, UserError
from align.store.backups.ledger_backups import SUFFIX, copy_ledger
from align.store.durable import make_folder, replace, replacing, sync
from align.store.ledger.ledger import Ledger
from align.store.lookback import first_names
from align.store.paths import NAMED_ELSEWHERE, StorePaths
from align.store.snapshots.snapshots import SnapshotStore
from align.store.store import Store
from align.store.stored_files import StoredFiles, fault_of
from align.store.superseded import handed_on, superseded_in
from rollouts.types import SnapshotId

TRIES = 3
"""Views of the ledger that are tried beside a run that replaces files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreBackup:
    """Backup that was written."""

    path: Path
    num_snapshots: int = 0
    num_files: int = 0
    missing: tuple[str, ...] = ()
    """Sentences about what the ledger names and the store does not have as it was written."""

    def lines(self) -> Iterator[str]:
        """Describe it to a person."""
        rest = f", {self.num_snapshots} snapshots, {self.num_files} files"
        yield f"{self.path}: the ledger{rest if self.path.is_dir() else ''}"
        yield from (f"not in the backup: {sentence}" for sentence in self.missing)


def write_backup(store: Store, ledger_file: Path, target: Path) -> StoreBackup:
    """Write the ledger alone into a file that ends with ``.db``, or the whole store into a folder.

    Raises:
        UserError: something is there already, or nothing can be written there.
        StoreError: the ledger cannot be copied.
    """
    if target.exists():
        raise UserError(
            "something is there already, and a backup replaces nothing",
            where=str(target),
            remedy="name a file or a folder that does not exist yet",
        )
    staged = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == SUFFIX:
            copy_ledger(ledger_file, target)
            return StoreBackup(path=target)
        written = _copied(store, ledger_file, staged)
        for folder, _, names in os.walk(staged):
            for path in (*(Path(folder, name) for name in names), Path(folder)):
                sync(path)
        replace(staged, target.absolute())
    except OSError as error:
        raise UserError(
            f"the backup could not be written ({error.strerror})",
            where=error.filename or str(target),
            remedy="name a place with enough room that this user may write to",
        ) from error
    finally:
        _remove(staged)
    return StoreBackup(
        path=target,
        num_snapshots=written.num_snapshots,
        num_files=written.num_files,
        missing=written.missing,
    )


def return_files(backup: Path, store: Store, aside: Path) -> list[str]:
    """Put back what the store's ledger names and the store lacks, from a backup that has it, and the
    metrics and rollouts that it has besides.

    Raises:
        KeelError: a file of the backup is not what the ledger says; what came before it was put back.
    """
    snapshots: list[str] = []
    saved = SnapshotStore(backup)
    for snapshot in _named(store.ledger):
        if not StorePaths(backup).snapshot(snapshot).is_dir() or _opens(store, snapshot):
            continue
        saved_snapshot, folder = saved.open(snapshot), store.paths.snapshot(snapshot)
        if folder.exists():
            _set_aside(folder, aside / store.paths.relative(folder))
        store.snapshots.publish(
            lambda target, saved_snapshot=saved_snapshot: _copy_listed(saved_snapshot.path, target),  # type: ignore[misc]
            saved_snapshot.manifest.provenance,
            code=True,
        )
        snapshots.append(snapshot[:12])
    hashes = store.files.hashes()
    records = [path for path in StorePaths(backup).mirrored() if path not in hashes]
    records = [path for path in records if not (store.folder / path).exists()]
    for path in records:
        _copy(backup / path, store.folder / path)
    files: list[str] = []
    for path, row in hashes.items():
        source, target = backup / path, store.folder / path
        if fault_of(target, row.sha256) is None or fault_of(source, row.sha256) is not None:
            continue
        if target.exists():
            _set_aside(target, aside / path)
        _copy(source, target)
        files.append(path)
    return [
        f"back again: {count_of(len(names), noun)} ({first_names(names)})"
        for names, noun in (
            (snapshots, "snapshot"),
            (records, "file of metrics, rollouts and other records"),
            (files, "file that the ledger has hashes of"),
        )
        if names
    ]


def count_of(number: int, noun: str) -> str:
    """Write a number of things.

    >>> count_of(1, "file of records"), count_of(2, "file of records")
    ('1 file of records', '2 files of records')
    """
    head, space, rest = noun.partition(" ")
    return f"{number:,} {head}{'' if number == 1 else 's'}{space}{rest}"


def check_backup(folder: Path) -> Path:
    """Verify all snapshots of a backup's folder; return its ledger.

    Raises:
        LedgerLost: there is no ledger in it.
        SnapshotError: a snapshot in it is damaged.
        UserError: a link in it leads to a file elsewhere, which would be copied into the store.
    """
    home = folder.resolve()
    for parent, folders, files in os.walk(home):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                raise UserError(
                    "the link points to a file outside the backup",
                    where=str(path),
                    cause="keel backup writes no links",
                    remedy="remove the link, or name another backup",
                )
    ledger = StorePaths(folder).ledger
    if not ledger.is_file():
        raise LedgerLost(
            "there is no ledger in this folder",
            where=str(folder),
            remedy="name a folder that keel backup wrote, or a ledger's file",
        )
    saved = SnapshotStore(folder)
    for path in sorted(StorePaths(folder).snapshots.glob("*")):
        saved.open(path.name)
    return ledger


def _copied(store: Store, ledger_file: Path, folder: Path) -> StoreBackup:
    """Copy a store as its ledger names it."""
    for attempt in range(TRIES):
        _remove(folder)
        folder.mkdir(mode=0o700)
        copy = StorePaths(folder).ledger
        copy_ledger(ledger_file, copy)
        ledger = Ledger(sqlite_url(copy))
        store.pull(checkpoints=True)
        missing = [*_copy_snapshots(store, ledger, folder), *_copy_files(store, ledger, folder)]
        snapshots = len(list(StorePaths(folder).snapshots.glob("*")))
        files = len(list(StorePaths(folder).mirrored()))
        ledger.database.engine.dispose()
        if not missing or attempt == TRIES - 1:
            break
    return StoreBackup(
        path=folder, num_snapshots=snapshots, num_files=files, missing=tuple(missing)
    )


def _copy_snapshots(store: Store, ledger: Ledger, folder: Path) -> Iterator[str]:
    for snapshot in _named(ledger):
        try:
            store.snapshots.copy(snapshot, StorePaths(folder).snapshot(snapshot))
        except KeelError as error:
            yield f"snapshot {snapshot[:12]}: {error.what}"
        except FileNotFoundError:
            yield f"snapshot {snapshot[:12]} was removed or packed meanwhile"


def _copy_files(store: Store, ledger: Ledger, folder: Path) -> Iterator[str]:
    """Copy all files of records that the ledger did not replace; verify those that it has hashes of."""
    hashes, superseded = StoredFiles(folder, ledger.database).hashes(), superseded_in(ledger)
    needed = {record.path for record in ledger.evaluations()} | handed_on(ledger, hashes)
    needed |= _replayed(store, ledger) & hashes.keys()
    needed |= {path for path in hashes if not NAMED_ELSEWHERE.match(path)}
    for path in sorted({*store.paths.mirrored(), *needed}):
        if superseded(path):
            continue
        try:
            _copy(store.folder / path, folder / path)
        except FileNotFoundError:
            if path in needed:
                yield f"{path} is missing"
            continue
        row = hashes.get(path)
        if row and (fault := fault_of(folder / path, row.sha256)):
            yield f"{path} {fault}"


def _replayed(store: Store, ledger: Ledger) -> set[str]:
    """Return the names of all files that rounds may replay of accepted ones."""
    accepted = {r.candidate for r in ledger.attempts() if r.state == "accepted" and r.candidate}
    kinds = (store.paths.replay, store.paths.replay_examples, store.paths.prompt_history)
    owners = accepted - ledger.collected()
    return {store.paths.relative(path_of(owner)) for owner in owners for path_of in kinds}


def _named(ledger: Ledger) -> list[SnapshotId]:
    """List the snapshots on record that were not collected, oldest first."""
    collected = ledger.collected()
    return [record.id for record in ledger.snapshots() if record.id not in collected]


def _opens(store: Store, snapshot: SnapshotId) -> bool:
    try:
        store.snapshots.open(snapshot)
    except KeelError:
        return False
    return True


def _copy_listed(source: Path, target: Path) -> None:
    """Copy a snapshot's files without its manifest, which publishing writes."""
    for entry in SnapshotStore(source.parents[1]).open(source.name).manifest.files:
        (target / entry.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / entry.path, target / entry.path)


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as staged:
        shutil.copyfile(source, staged)


def _set_aside(path: Path, target: Path) -> None:
    make_folder(target.parent)
    path.chmod(path.stat().st_mode | 0o700)  # A snapshot's folder may not be moved otherwise.
    replace(path, target)


def _remove(folder: Path) -> None:
    """Remove a folder whose subfolders may be read-only, as those of snapshots are."""
    for parent, _, _ in os.walk(folder):
        os.chmod(parent, 0o700)
    shutil.rmtree(folder, ignore_errors=True)

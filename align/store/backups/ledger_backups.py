"""Backups of a SQLite ledger: whole copies in a folder beside it, numbered in the order they were made.

    ledger.db                           the ledger
    ledger-backups/000007.db            the newest copy; the highest number is the newest

A copy is one view of the ledger, checked by nobody but complete: it has its name once all of it is on the
disk. Behind a store's URL the same files lie under the same names, so that another machine finds them.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path

from sqlalchemy.engine import make_url

from align.config.store import StoreSettings
from align.errors import KeelError, StoreError, UserError
from align.store.durable import replace, sync
from align.store.ledger.tables.core import leases
from align.store.remote import Remote

SUFFIX = ".db"
FOLDER = "ledger-backups"
"""Folder of the copies behind a URL."""


class LedgerBackups:
    """The backups of one ledger.

    Args:
        ledger: file of the ledger; it does not have to exist.
        remote: remote copy of the store; None: there is none.
    """

    def __init__(self, ledger: Path, remote: Remote | None = None) -> None:
        self.ledger, self._remote = ledger, remote
        self.folder = ledger.with_name(f"{ledger.stem}-backups")

    def files(self) -> list[Path]:
        """List the backups that lie here, oldest first."""
        return sorted(path for path in self.folder.glob(f"*{SUFFIX}") if path.stem.isdigit())

    def newest(self) -> Path | None:
        """Return the newest backup, fetched from the store's URL if only that has it; None if none is."""
        there = self._there()
        here = self.files()
        if there and (not here or there[-1] > here[-1].name):
            self._fetch(there[-1])
            here = self.files()
        return here[-1] if here else None

    def write(self, keep: int) -> Path:
        """Copy the ledger; then remove the oldest backups but ``keep``.

        Raises:
            StoreError: the ledger cannot be read, or the copy not be written.
            KeelError: the store's URL cannot be used.
        """
        names = [path.name for path in self.files()] + self._there()
        number = 1 + max((int(Path(name).stem) for name in names), default=0)
        path = self.folder / f"{number:06d}{SUFFIX}"
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            sync(self.folder.parent)
        except OSError as error:
            raise not_copied(self.ledger, path, error) from error
        copy_ledger(self.ledger, path)
        if self._remote is not None:
            self._remote.upload(path, f"{FOLDER}/{path.name}")
        self._drop(keep)
        return path

    def _drop(self, keep: int) -> None:
        for path in self.files()[:-keep]:
            path.unlink(missing_ok=True)
        if self._remote is not None:
            self._remote.remove([f"{FOLDER}/{name}" for name in self._there()[:-keep]])

    def _there(self) -> list[str]:
        """List the names of the backups behind the URL, oldest first."""
        if self._remote is None:
            return []
        names = (Path(path).name for path in self._remote.versions(FOLDER))
        return sorted(name for name in names if Path(name).stem.isdigit())

    def _fetch(self, name: str) -> None:
        assert self._remote is not None
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged = _private(self.folder)
        try:
            self._remote.download(f"{FOLDER}/{name}", staged)
            sync(staged)
            replace(staged, self.folder / name)
        finally:
            staged.unlink(missing_ok=True)


def backups_of(config: StoreSettings) -> LedgerBackups | None:
    """Return the backups of a campaign's ledger; None where a database server holds it."""
    file = ledger_file(config)
    if file is None:
        return None
    remote = Remote(config.store, config.store_options) if config.is_remote else None
    return LedgerBackups(file, remote)


def ledger_file(config: StoreSettings) -> Path | None:
    """Return the file of a campaign's ledger; None where a database server holds it."""
    url = make_url(config.ledger_url)
    is_file = url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:")
    return Path(str(url.database)) if is_file else None


def file_to_back_up(config: StoreSettings) -> Path:
    """Return the file of a campaign's ledger.

    Raises:
        UserError: a database server holds it.
    """
    file = ledger_file(config)
    if file is None:
        raise UserError(
            "the ledger lies on a database server, which has backups of its own",
            where="ledger",
            remedy="back it up with pg_dump, and copy the store beside it; pg_restore brings it back",
        )
    return file


def copy_ledger(source: Path, target: Path) -> None:
    """Copy a ledger as it stands into a file, whole or not at all, whoever writes to it meanwhile.

    The copy is claimed by nobody: a lease is that of the ledger.

    Raises:
        StoreError: the ledger cannot be read, or the copy not be written.
    """
    staged = None
    try:
        staged = _private(target.parent)
        with closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True)) as ledger:
            ledger.isolation_level = None
            ledger.execute("VACUUM INTO ?", (str(staged),))
        with closing(sqlite3.connect(staged)) as copy, copy:
            copy.execute("PRAGMA journal_mode = DELETE")
            copy.execute(f"DELETE FROM {leases.name}")
        sync(staged)
        replace(staged, target)
    except (sqlite3.Error, OSError) as error:
        raise not_copied(source, target, error) from error
    finally:
        if staged is not None:
            staged.unlink(missing_ok=True)


def not_copied(source: Path, target: Path, error: Exception) -> StoreError:
    """Describe a copy of a ledger that failed."""
    return StoreError(
        f"the ledger could not be copied to {target} ({error})",
        where=str(source),
        cause="a full disk, missing permission, or a damaged ledger",
        remedy="make room, correct the permissions, or bring the ledger back with keel restore CAMPAIGN",
    )


def back_up(config: StoreSettings) -> str | None:
    """Write a backup of a campaign's ledger after a commit, if its settings ask for it.

    Returns:
        A sentence about what failed: what was committed is safe without a backup. None if nothing did.
    """
    if not config.ledger_backups:
        return None
    try:
        backups = backups_of(config)
        if backups is not None:
            backups.write(config.ledger_backups)
    except KeelError as error:
        return f"warning: the ledger was not backed up: {error.what}"
    return None


def _private(folder: Path) -> Path:
    """Make an empty file that only its owner reads, in a folder that exists."""
    path = folder / f".{uuid.uuid4().hex}{SUFFIX}"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    return path

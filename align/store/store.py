"""The store of a campaign, opened once: ledger, snapshots, hashed files, and the copy behind a URL.

With a URL the local folder is a cache of the store: snapshots are fetched when they are opened, everything
else by `Store.pull`. What is recorded is copied there before the ledger names it, so a machine with an
empty cache, the same ledger and the same URL goes on where another one stopped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from shutil import rmtree

from sqlalchemy.engine import make_url

from align.config.store import StoreSettings
from align.errors import LedgerLost
from align.store.backups.ledger_backups import LedgerBackups
from align.store.backups.lost import check_has_campaign, check_not_lost, damaged
from align.store.database.database import holds_ledger
from align.store.database.postgres import is_postgres, shown
from align.store.database.private import close_to_others, make_private
from align.store.ledger.ledger import Ledger
from align.store.mirror import ONE_SIDED, Mirror
from align.store.paths import StorePaths
from align.store.remote import Remote
from align.store.run_folder import CHECKPOINT, checkpoints_in
from align.store.snapshots.snapshots import SnapshotStore
from align.store.stored_files import RUN_AGAIN, StoredFiles, fault_of
from align.store.superseded import scratch, superseded_in, unfinished

SWEPT = 400
"""Newest attempts whose folders are looked through for what a run left over."""


class Store:
    """Ledger, snapshots and files of one campaign.

    Args:
        folder: of the store, or the cache of one with a URL.
        mirror: copy behind a URL; a store that is only local has none.
    """

    def __init__(self, folder: Path, ledger: Ledger, mirror: Mirror = ONE_SIDED) -> None:
        self.folder, self.ledger, self._mirror = folder, ledger, mirror
        self.paths = StorePaths(folder)
        self.files = StoredFiles(folder, ledger.database, mirror)
        self.snapshots = SnapshotStore(folder, mirror.remote, ledger.collections)

    @property
    def is_remote(self) -> bool:
        """True if the store has a URL."""
        return self._mirror.remote is not None

    def pull(self, *, checkpoints: bool = False) -> None:
        """Fetch the records that other machines wrote since, without what the ledger no longer names.

        Args:
            checkpoints: fetch those of unfinished rounds too; only a run needs them.
        """
        if self.is_remote:
            self._mirror.pull(checkpoints=checkpoints, leave=superseded_in(self.ledger))

    def sweep(self) -> None:
        """Remove what the ledger no longer names, here and behind the URL. Hold the lease first.

        Every run begins with it, so what is left over is of the last one: of a store of many rounds only
        the folders of the newest are looked through.
        """
        attempts = self.ledger.attempts()
        if self.is_remote or len(attempts) <= SWEPT:
            self.withdraw(sorted(filter(superseded_in(self.ledger), self.sizes())))
            return
        newest = attempts[-SWEPT:]
        snapshots = {s for r in newest for s in (r.parent, r.candidate) if s is not None}
        folders = {self.paths.round(record.index, record.name).path for record in newest}
        folders |= {self.paths.evaluation(snapshot, "*").parent for snapshot in snapshots}
        files = {name for folder in folders for name in self.paths.mirrored_in(folder)}
        self.withdraw(sorted(filter(superseded_in(self.ledger, snapshots), files)))

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every complete file of records, here or behind the URL, by path."""
        remote = {} if self._mirror.remote is None else self._mirror.versions()
        far = {path: int(version.rpartition("/")[2]) for path, version in remote.items()}
        here: dict[str, int] = {}
        for name in self.paths.mirrored():
            with suppress(FileNotFoundError):  # A runner may be replacing it meanwhile.
                here[name] = (self.folder / name).stat().st_size
        return far | here

    def remove_unfinished(self) -> None:
        """Remove files that a run was writing when it was killed. Nobody else may be writing any."""
        for path in unfinished(self.folder):
            path.unlink(missing_ok=True)
        for folder in scratch(self.folder):
            rmtree(folder)

    def withdraw(self, paths: Iterable[str]) -> None:
        """Remove files that the ledger no longer names, here and behind the URL; paths are the store's."""
        names = list(paths)
        for name in names:
            path = self.folder / name
            path.unlink(missing_ok=True)
            with suppress(OSError):
                os.removedirs(path.parent)
        self._mirror.remove(names)

    def renew_backups(self) -> None:
        """Replace all backups of the ledger, if there are any, by one of the ledger as it is now."""
        url = self.ledger.database.engine.url
        if is_postgres(url):
            return
        backups = LedgerBackups(Path(str(url.database)), self._mirror.remote)
        if backups.newest() is not None:
            backups.write(1)

    def restored(self, path: str, sha256: str) -> bool:
        """Fetch one file again, by its name in the ledger; return True if it now has this hash."""
        return self._mirror.restore(path) and not fault_of(self.folder / path, sha256)

    def checked(self, path: Path, remedy: str = RUN_AGAIN) -> Path:
        """Return the path of a file whose bytes are those on record; fetch it again where it differs here.

        Raises:
            EvidenceError: the file is missing, or was changed.
        """
        if self.is_remote and self.files.fault_of(path):
            self._mirror.restore(self.paths.relative(path))
        return self.files.check(path, remedy)

    def checked_unfetched(self, path: Path, remedy: str = RUN_AGAIN) -> Path:
        """Return the path that `checked` would, without fetching: of a remote file only the size counts.

        Raises:
            EvidenceError: the file is missing, or was changed.
        """
        if self._mirror.remote is None or not self.files.fault_of(path):
            return self.files.check(path, remedy)
        name = self.paths.relative(path)
        size = self._mirror.sizes(name.rpartition("/")[0]).get(name)
        self.files.check_size(path, size, where=self._mirror.remote.place(name), remedy=remedy)
        return path

    def keep_checkpoint(self, folder: Path) -> None:
        """Record the newest checkpoint in a folder; older ones were removed, and are removed everywhere."""
        self.files.record(_newest_manifest(folder))
        self._mirror.trim(folder)

    def check_checkpoint(self, folder: Path) -> None:
        """Check the newest checkpoint in a folder, if there is one.

        Raises:
            EvidenceError: its manifest was changed.
        """
        for manifest in _newest_manifest(folder):
            self.files.check(manifest)

    def forget_checkpoints(self, index: int, round: str) -> None:
        """Remove the checkpoints of a round and of its repairs; metrics and rollouts stay."""
        for folder in self.paths.round(index, round).all_checkpoints():
            rmtree(folder, ignore_errors=True)
            self._mirror.trim(folder)

    def copy_rewritten(self, folders: Iterable[Path]) -> None:
        """Copy rewritten files of some folders to the URL, and remove there what is gone here."""
        self._mirror.push()
        for folder in folders:
            self._mirror.trim(folder)


def open_store(config: StoreSettings, ledger: Ledger | None = None) -> Store:
    """Open a campaign's store; make it if there is none.

    Args:
        ledger: the campaign's, where it is open already.

    Raises:
        UserError: the ledger's URL is none, or there is no such store, no credentials or no package for it.
        StoreError: the database cannot be reached, or holds something else.
        RunError: the store cannot be reached.
    """
    ledger = ledger or open_ledger(config)
    if config.is_remote:
        make_private(config.folder)
    return store_to_read(config, ledger)


def store_to_read(config: StoreSettings, ledger: Ledger) -> Store:
    """Open the store of a ledger, or of a copy of it, without making any folder.

    Raises:
        KeelError: see `open_store`.
    """
    if not config.is_remote:
        return Store(config.folder, ledger)
    remote = Remote(config.store, config.store_options)
    return Store(config.folder, ledger, Mirror(config.folder, remote))


def open_ledger(config: StoreSettings) -> Ledger:
    """Open the campaign's ledger alone; make it if there is none.

    Raises:
        UserError: the URL is none, or not given where it should be.
        StoreError: the database cannot be reached, or holds something else.
        LedgerLost: it is missing, empty or damaged, and the store has snapshots.
    """
    check_not_lost(config)
    # Where there are snapshots it is a store's folder, and nobody else's.
    if StorePaths(config.folder).snapshots.is_dir():
        close_to_others(config.folder)
    try:
        ledger = Ledger(config.ledger_url)
        has_campaign = ledger.has_campaign()
    except LedgerLost as error:
        raise damaged(config, error) from error
    check_has_campaign(config, has_campaign)
    return ledger


def known_ledger(config: StoreSettings) -> Ledger | None:
    """Open the ledger if there is one; make none. Feedback and leases lie there before any round has
    run.

    Raises:
        LedgerLost: there is none, or a damaged one, and the store has snapshots.
    """
    check_not_lost(config)
    return open_ledger(config) if holds_ledger(config.ledger_url) else None


def begun_ledger(config: StoreSettings) -> Ledger | None:
    """Open the ledger of a campaign that ran before, and so has a base; None where none did."""
    ledger = known_ledger(config)
    return None if ledger is None or ledger.alias("production") is None else ledger


def ledger_place(config: StoreSettings) -> str:
    """Return where the ledger lies, for people: no password."""
    if not config.ledger:
        return str(StorePaths(config.folder).ledger)
    return shown(make_url(config.ledger_url))


def _newest_manifest(folder: Path) -> list[Path]:
    return [path / CHECKPOINT for path in checkpoints_in(folder).values()][-1:]

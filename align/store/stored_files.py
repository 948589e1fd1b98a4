"""Hashes of a store's files, kept in its ledger: evidence cannot change without being noticed.

Every evaluation, replay, stored-answer and checkpoint file is on the disk, folder entries included, before
its hash is committed, and its bytes are compared with that hash whenever it is read. The record only grows:
a file that is measured again, or rewritten by a purge, gets another row that says why.

Files of stores older than the record have no hash until `keel run` records one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import func, insert, select

from align.errors import EvidenceError
from align.store.database.database import Database
from align.store.durable import digest_of, sync
from align.store.ledger.tables.logs import stored_files
from align.store.mirror import ONE_SIDED, Mirror
from align.store.paths import inner

WRITTEN = "written"
FIRST_READ = "first read: written by a version of Keel that recorded no hashes"
MEASURED_AGAIN = "measured again: the file "
"""Beginning of the reason of a replacement; what was wrong with the file follows."""
RUN_AGAIN = "keel run CAMPAIGN makes it again where it can, and says so where it cannot"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileHash:
    """One row of the record."""

    path: str
    """Relative to the store, with forward slashes."""
    bytes: int
    sha256: str
    reason: str
    time: str
    """ISO 8601, UTC."""

    def __post_init__(self) -> None:
        inner(self.path)


_ROW = [column for column in stored_files.c if column.name != "seq"]


@dataclass(frozen=True, slots=True)
class StoredFiles:
    """The record of one store's files.

    Args:
        folder: the store.
    """

    folder: Path
    database: Database
    mirror: Mirror = ONE_SIDED
    """Remote copy of the store; it has a file before the ledger names its hash."""

    def record(self, paths: Iterable[Path], reason: str = WRITTEN) -> None:
        """Copy files to the store's URL, flush them and their folders to disk, then commit their hashes."""
        paths = list(paths)
        if not paths:
            return
        self.mirror.push()
        for path in paths:
            sync(path)
        folders = {folder for path in paths for folder in path.parents}
        for folder in folders:
            if folder.is_relative_to(self.folder):
                sync(folder)
        rows = [
            {
                "path": self._name(path),
                "bytes": size,
                "sha256": sha256,
                "reason": reason,
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            }
            for path in paths
            for size, sha256 in (digest_of(path),)
        ]
        with self.database.write() as connection:
            connection.execute(insert(stored_files), rows)

    def hash_of(self, path: Path) -> str | None:
        """Return the sha256 on record for a file; None if there is none."""
        rows = select(stored_files.c.sha256).where(stored_files.c.path == self._name(path))
        with self.database.read() as connection:
            return connection.scalar(rows.order_by(stored_files.c.seq.desc()).limit(1))

    def hashes(self) -> dict[str, FileHash]:
        """Return the newest row of every file, by path."""
        newest = select(func.max(stored_files.c.seq)).group_by(stored_files.c.path)
        rows = select(*_ROW).where(stored_files.c.seq.in_(newest)).order_by(stored_files.c.path)
        with self.database.read() as connection:
            return {row.path: FileHash(**row._mapping) for row in connection.execute(rows)}

    @property
    def num_rows(self) -> int:
        """Number of the newest row of the record."""
        with self.database.read() as connection:
            return connection.scalar(select(func.max(stored_files.c.seq))) or 0

    def hashes_of(self, paths: Iterable[str]) -> dict[str, FileHash]:
        """Return the newest row of some files, by path; those without one are left out."""
        newest = select(*_ROW).order_by(stored_files.c.seq.desc()).limit(1)
        with self.database.read() as connection:
            rows = [
                connection.execute(newest.where(stored_files.c.path == path)).one_or_none()
                for path in dict.fromkeys(paths)
            ]
        return {row.path: FileHash(**row._mapping) for row in rows if row is not None}

    def hashes_between(self, first: int, last: int) -> dict[str, FileHash]:
        """Return the newest row of files that have a row with a number in a range, by path."""
        this = stored_files.c.seq.between(first, last)
        with self.database.read() as connection:
            paths = list(connection.scalars(select(stored_files.c.path).where(this)))
        return self.hashes_of(paths)

    def fault_of(self, path: Path) -> str | None:
        """Return what is wrong with a file, as the end of a sentence; None if nothing is."""
        return fault_of(path, self.hash_of(path))

    def check(self, path: Path, remedy: str = RUN_AGAIN) -> Path:
        """Return the path of a file whose bytes are those on record, or that has no hash on record.

        Raises:
            EvidenceError: the file is missing, or was changed.
        """
        return checked(path, self.hash_of(path), remedy)

    def check_size(self, path: Path, size: int | None, *, where: str, remedy: str) -> None:
        """Check the size of a remote file against the one on record.

        Args:
            path: the file's place here; it does not have to exist.
            size: its bytes; None: it is missing.
            where: the file's place there, for errors.

        Raises:
            EvidenceError: they differ.
        """
        wanted = self.hashes_of([self._name(path)])[self._name(path)].bytes
        if size is None:
            raise _lost(where, "is missing", remedy)
        if size != wanted:
            fault = f"was changed: it has {size} bytes, and {wanted} are on record"
            raise _lost(where, fault, remedy)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def fault_of(path: Path, sha256: str | None) -> str | None:
    """Return what is wrong with a file that should have this hash; None if nothing is.

    Args:
        sha256: None if there is no hash on record; the file then only has to be there.
    """
    try:
        if sha256 is None:
            return None if path.is_file() else "is missing"
        actual = digest_of(path)[1]
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if actual == sha256:
        return None
    return f"was changed: its sha256 is {actual[:16]}, and {sha256[:16]} is on record"


def checked(path: Path, sha256: str | None, remedy: str = RUN_AGAIN) -> Path:
    """Return the path of a file that has this hash.

    Raises:
        EvidenceError: it is missing, or was changed.
    """
    if fault := fault_of(path, sha256):
        raise _lost(str(path), fault, remedy)
    return path


def _lost(where: str, fault: str, remedy: str) -> EvidenceError:
    return EvidenceError(
        f"the file {fault}",
        where=where,
        cause="somebody edited or removed it, or the disk lost it; nothing was read from it",
        remedy=remedy,
    )

"""Immutable snapshots of the policy, named by the sha256 of their manifest.

`publish` makes a snapshot visible as a whole or not at all; `open` refuses one whose bytes have
changed, and names the file. Nothing here loads weights or runs code, and pickles cannot get in; Python
files of a model can where a campaign asks for them, and are verified like every other byte.
Which snapshot is production is the ledger's business.

    store/staging/<uuid>/     being written; never loadable, removed by `clean` once its writer is gone
    store/packed/<id>/        the same snapshot in little room; `open` makes it a whole one again
    store/snapshots/<id>/     read-only: manifest.json and the files it lists, nothing else

The manifest carries no time and no absolute path: the same content and provenance give the same id
on every machine, so publishing again after a crash finds what is already there.

A store with a URL keeps the same snapshots behind it, and the folder is its cache: see
`align.store.snapshots.published`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from align.errors import MissingSnapshot, SnapshotError
from align.store.durable import digest_of, make_folder, replace, sync
from align.store.ledger.collected import Collected, CollectionLog
from align.store.paths import StorePaths
from align.store.remote import Remote
from align.store.snapshots.holds import Hold, unheld
from align.store.snapshots.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    Provenance,
    SnapshotKind,
    refuse_leaks,
)
from align.store.snapshots.packed import WHOLE_EVERY, Delta, pack, unpack
from align.store.snapshots.published import clear, faults, fetch, manifest_of, send, sizes, withdraw
from align.store.snapshots.staging import abandoned, clear_abandoned, staged
from rollouts.types import SnapshotId

__all__ = ["FileEntry", "Manifest", "Provenance", "Snapshot", "SnapshotKind", "SnapshotStore"]

T = TypeVar("T")
LOOKS = 20
"""Times that a snapshot is read which others pack or unpack meanwhile."""
CODE = ".py"
SUFFIXES = frozenset({".safetensors", ".json", ".jsonl", ".txt", ".jinja", ".model"})
"""Weights, configs, documents, vocabularies, chat templates, sentencepiece. None of them can run code."""

ID = re.compile(r"[0-9a-f]{64}")
"""Form of a snapshot's id."""
Stamp = tuple[tuple[str, int, int, int], ...]
"""Path, size, mtime in ns and inode of every file: changes whenever an ordinary write does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A published snapshot whose every byte has been verified."""

    id: SnapshotId
    path: Path
    """Read-only folder in Hugging Face format (a model) or peft format (an adapter)."""
    kind: SnapshotKind
    manifest: Manifest


class SnapshotStore:
    """The snapshots under one folder. Several processes may read; publishing twice is harmless.

    Args:
        remote: where they also are, so that other machines find them; None: nowhere.
        collections: record of the snapshots whose files were removed on purpose; None: none was.
    """

    def __init__(
        self,
        root: Path,
        remote: Remote | None = None,
        collections: CollectionLog | None = None,
    ) -> None:
        self._remote, self._collections = remote, collections
        paths = StorePaths(root.absolute())
        self._staging, self._snapshots, self._packed = paths.staging, paths.snapshots, paths.packed
        self._verified: dict[SnapshotId, tuple[Stamp, Snapshot]] = {}
        self._references: dict[SnapshotId, SnapshotId] = {}
        """Reference of every snapshot that was seen packed: always its parent."""

    def publish(
        self, write: Callable[[Path], None], provenance: Provenance, *, code: bool = False
    ) -> Snapshot:
        """Make what ``write`` puts into an empty folder a snapshot, atomically and durably.

        Args:
            code: Python files may be among it: of a model that brings its own, where that was asked for.

        Raises:
            SnapshotError: a file that may not be in a snapshot, the disk is full, or what arrived at the
                remote store is not what was sent. On this and on whatever ``write`` raises, nothing
                is visible and nothing stays behind.
            UserError: the provenance holds an absolute path or a secret.
        """
        refuse_leaks(provenance)
        with self._staged() as staging:
            write(staging)
            manifest = _describe(staging, provenance, SUFFIXES | {CODE} if code else SUFFIXES)
            (staging / MANIFEST).write_bytes(manifest.to_bytes())
            snapshot = self._install(staging, manifest)
        if self._remote is not None:
            send(self._remote, snapshot.id, snapshot.path, snapshot.manifest)
        return snapshot

    def open(self, snapshot_id: SnapshotId) -> Snapshot:
        """Open a snapshot, every file verified once per process and again whenever one was touched.

        Raises:
            SnapshotError: missing, collected, or not the bytes the id stands for; ``where`` names the file.
        """
        return self._settled(snapshot_id, lambda: self._open(snapshot_id))

    def hold(self, snapshot_id: SnapshotId) -> tuple[Snapshot, Hold]:
        """Open a snapshot that is neither packed nor removed while the hold is there.

        Raises:
            SnapshotError: see `open`.
        """
        while True:
            snapshot = self.open(snapshot_id)
            with suppress(FileNotFoundError):  # It was packed or removed in between.
                return snapshot, Hold(snapshot.path)

    @contextmanager
    def reading(self, snapshot_id: SnapshotId) -> Iterator[Snapshot]:
        """Open a snapshot that is neither packed nor removed within the block.

        Raises:
            SnapshotError: see `open`.
        """
        snapshot, hold = self.hold(snapshot_id)
        try:
            yield snapshot
        finally:
            hold.release()

    def _settled(self, snapshot_id: SnapshotId, read: Callable[[], T]) -> T:
        """Read a snapshot; once more where files were missing since it was packed or unpacked meanwhile.

        A snapshot that was both looks as it did before, so one that is said to be missing though it is here
        is read again too.
        """
        for _ in range(LOOKS):
            forms = self._forms(snapshot_id)
            try:
                return read()
            except (SnapshotError, FileNotFoundError) as error:
                is_missing = isinstance(error, MissingSnapshot | FileNotFoundError)
                was_missed = is_missing and self.is_here(snapshot_id)
                if self._forms(snapshot_id) == forms and not was_missed:
                    raise
        return read()

    def _forms(self, snapshot_id: SnapshotId) -> list[tuple[SnapshotId, bool, bool]]:
        """Tell of a snapshot, and of those that it is stored as a difference from, what there is of it."""
        forms: list[tuple[SnapshotId, bool, bool]] = []
        at: SnapshotId | None = snapshot_id
        while at is not None:
            forms.append((at, self._folder(at).is_dir(), self.is_packed(at)))
            at = None
            with suppress(SnapshotError):
                at = self.reference(forms[-1][0])
        return forms

    def _open(self, snapshot_id: SnapshotId) -> Snapshot:
        folder = self._folder(snapshot_id)
        if not folder.exists() and (gone := self._collected(snapshot_id)) is not None:
            raise gone.error()
        if not folder.exists() and self.is_packed(snapshot_id):
            self._unpack(snapshot_id)
        if self._remote is not None and not folder.exists():
            with self._staged() as staging:
                self._install(staging, fetch(self._remote, snapshot_id, staging))
        _require(folder)
        stamp = _stamp(folder)
        known = self._verified.get(snapshot_id)
        if known is not None and known[0] == stamp:
            return known[1]
        snapshot = _verify(snapshot_id, folder)
        self._verified[snapshot_id] = (stamp, snapshot)
        return snapshot

    def verify(self, snapshot_id: SnapshotId) -> None:
        """Read a snapshot again, here if it is here and else behind the URL, and compare every byte.

        Raises:
            SnapshotError: missing, or not the bytes the id stands for.
        """
        self._verified.pop(snapshot_id, None)
        if self._settled(snapshot_id, lambda: self._verified_here(snapshot_id)):
            return
        if self._remote is None:
            self.open(snapshot_id)
            return
        for fault in faults(self._remote, snapshot_id):
            raise SnapshotError(fault, remedy="restore this file from a backup")

    def _verified_here(self, snapshot_id: SnapshotId) -> bool:
        """Compare every byte of a snapshot in both forms; return False if it is here in none."""
        packed, folder = self.is_packed(snapshot_id), self._folder(snapshot_id)
        if packed:
            with self._staged() as scratch:
                _verify(snapshot_id, self._whole(snapshot_id, scratch, again=True))
        whole = folder.exists()
        if whole:
            self._open(snapshot_id)
        return packed or whole

    def manifest(self, snapshot_id: SnapshotId) -> Manifest:
        """Read the manifest of a snapshot, also of a collected one, without its files.

        Raises:
            SnapshotError: there is none, it cannot be read, or it is not the one that names the snapshot.
        """
        path = self._folder(snapshot_id) / MANIFEST
        if not path.is_file() and self.is_packed(snapshot_id):
            path = self._packed / snapshot_id / MANIFEST
        if not path.is_file() and (gone := self._collected(snapshot_id)) is not None:
            return Manifest.from_bytes(gone.manifest.encode(), where=snapshot_id)
        if not path.is_file() and self._remote is not None:
            return manifest_of(self._remote, snapshot_id)
        _require(path.parent)
        return _manifest_in(snapshot_id, path)

    def clean(self, *, remote: bool = True) -> int:
        """Remove what crashed publishers and collectors left; returns how many folders. Hold the lease
        first.

        Args:
            remote: also behind the URL, where a publisher that lives cannot be told from one that does not.
        """
        stale = clear_abandoned(self._staging)
        folders = (self._snapshots, self._packed)
        collected = frozenset() if self._collections is None else self._collections.ids()
        gone = [id for id in sorted(collected) if any((f / id).is_dir() for f in folders)]
        for snapshot_id in gone:
            self._remove_here(snapshot_id)
        cut_short = clear(self._remote, collected) if remote and self._remote is not None else 0
        return stale + len(gone) + cut_short

    def staged(self) -> list[Path]:
        """List the folders of publications that were cut short."""
        return abandoned(self._staging)

    def sizes(self) -> dict[SnapshotId, int]:
        """Return the bytes of every snapshot that is here or behind the URL, whoever names it."""
        totals: dict[SnapshotId, int] = {}
        for above in (self._snapshots, self._packed):
            for folder in sorted(above.iterdir()) if above.is_dir() else ():
                if ID.fullmatch(folder.name):
                    # A runner may be removing it meanwhile.
                    with suppress(FileNotFoundError):
                        size = sum((folder / name).stat().st_size for name in _files(folder))
                        totals[folder.name] = totals.get(folder.name, 0) + size
        return ({} if self._remote is None else sizes(self._remote)) | totals

    def is_packed(self, snapshot_id: SnapshotId) -> bool:
        """Tell if a snapshot is stored as a difference, whether it is whole here too or not."""
        return (self._packed / snapshot_id / MANIFEST).is_file()

    def is_here(self, snapshot_id: SnapshotId) -> bool:
        """Tell if there is a folder of a snapshot, whole or packed."""
        return self._folder(snapshot_id).is_dir() or self.is_packed(snapshot_id)

    def reference(self, snapshot_id: SnapshotId) -> SnapshotId | None:
        """Return the snapshot that a packed one cannot be read without; None if it is not packed."""
        packed = self.is_packed(snapshot_id)
        return Delta.read(self._packed / snapshot_id).reference if packed else None

    def pack(self, snapshot_id: SnapshotId) -> bool:
        """Store a snapshot as its difference from its parent, and remove its whole files; return False if
        it has no parent of its kind here, would make too long a chain, or is being read. Take the lease
        first.

        What was packed, now or earlier, is unpacked and compared before anything is removed.
        """
        folder = self._folder(snapshot_id)
        if self._remote is not None or not folder.is_dir():
            return False
        if not (self._unpacks(snapshot_id) or self._pack(snapshot_id)):
            return False
        return self._remove_folder(folder)

    def _unpacks(self, snapshot_id: SnapshotId) -> bool:
        """Tell if a snapshot is packed, and unpacks to the bytes that its id stands for."""
        if not self.is_packed(snapshot_id):
            return False
        try:
            with self._staged() as scratch:
                _verify(snapshot_id, self._whole(snapshot_id, scratch, again=True))
        except SnapshotError:
            return False
        return True

    def _pack(self, snapshot_id: SnapshotId) -> bool:
        """Write the packed form of a whole snapshot; return False if it cannot have one."""
        origin = self.manifest(snapshot_id).provenance
        parent = origin.parent
        if parent is None or not (self._folder(parent).is_dir() or self.is_packed(parent)):
            return False
        depth = 1 + self._depth(parent)
        too_long = depth + self._height(snapshot_id) >= WHOLE_EVERY
        if too_long or self.manifest(parent).provenance.kind != origin.kind:
            return False
        snapshot = self.open(snapshot_id)
        with self._staged() as staging:
            reference = self._whole(parent, staging / "references")
            packed = staging / "packed"
            packed.mkdir()
            pack(snapshot.manifest, snapshot.path, reference, parent, depth, packed)
            again = staging / "again"
            again.mkdir()
            unpack(packed, reference, again)
            _verify(snapshot_id, again)
            make_folder(self._packed)
            if (self._packed / snapshot_id).is_dir():
                self._remove_folder(self._packed / snapshot_id)
            replace(packed, self._packed / snapshot_id)
        return True

    def copy(self, snapshot_id: SnapshotId, target: Path) -> None:
        """Copy a snapshot's verified files and its manifest into a new folder; a packed one stays packed.

        Raises:
            SnapshotError: missing, collected, or not the bytes the id stands for.
            FileNotFoundError: it was packed or removed meanwhile.
        """
        if self.is_packed(snapshot_id):
            with self._staged() as scratch:
                _copy_files(self._whole(snapshot_id, scratch), target)
        else:
            with self.reading(snapshot_id) as snapshot:
                _copy_files(snapshot.path, target)
        _verify(snapshot_id, target)

    def _collected(self, snapshot_id: SnapshotId) -> Collected | None:
        return None if self._collections is None else self._collections.find(snapshot_id)

    def _depth(self, snapshot_id: SnapshotId) -> int:
        """Return the number of references that a snapshot is read through."""
        depth, reference = 0, self.reference(snapshot_id)
        while reference is not None:
            depth, reference = depth + 1, self.reference(reference)
        return depth

    def _height(self, snapshot_id: SnapshotId) -> int:
        """Return the number of snapshots in the longest chain of differences that rests on this one."""
        for folder in self._packed.iterdir() if self._packed.is_dir() else ():
            if ID.fullmatch(folder.name) and folder.name not in self._references:
                self._references[folder.name] = Delta.read(folder).reference
        height, level = 0, {snapshot_id}
        while level := {s for s, r in self._references.items() if r in level and self.is_packed(s)}:
            height += 1
        return height

    def _unpack(self, snapshot_id: SnapshotId) -> None:
        """Make a packed snapshot a whole one again."""
        with self._staged() as staging:
            whole = self._whole(snapshot_id, staging / "references")
            content = (whole / MANIFEST).read_bytes()
            manifest = Manifest.from_bytes(content, where=str(whole / MANIFEST))
            _verify(snapshot_id, whole)
            self._install(whole, manifest)

    def _whole(self, snapshot_id: SnapshotId, scratch: Path, *, again: bool = False) -> Path:
        """Return a folder with a snapshot's files; those of packed ones are written below ``scratch``.

        Args:
            again: unpack it although it is whole here too.
        """
        if self._folder(snapshot_id).is_dir() and not again:
            return self.open(snapshot_id).path
        packed = self._packed / snapshot_id
        if not packed.is_dir():
            _require(self._folder(snapshot_id))
        reference = self._whole(Delta.read(packed).reference, scratch)
        target = scratch / snapshot_id
        target.mkdir(parents=True)
        unpack(packed, reference, target)
        if reference.parent == scratch:
            shutil.rmtree(reference)
        return target

    def remove(self, snapshots: Collection[SnapshotId]) -> None:
        """Remove snapshots here and behind the URL; none is ever there in part. Record it first."""
        for snapshot_id in snapshots:
            self._remove_here(snapshot_id)
        if self._remote is not None:
            withdraw(self._remote, snapshots)

    def _remove_here(self, snapshot_id: SnapshotId) -> None:
        for folder in (self._folder(snapshot_id), self._packed / snapshot_id):
            if folder.is_dir():
                self._remove_folder(folder)

    def _remove_folder(self, folder: Path) -> bool:
        """Take a folder away from its name at once, then remove it; return False if somebody reads it."""
        staging = self._staging / uuid.uuid4().hex
        with unheld(folder) as free:
            if not free:
                return False
            self._verified.pop(folder.name, None)
            self._staging.mkdir(parents=True, exist_ok=True)
            # A folder that may not be written to cannot be moved.
            folder.chmod(0o755)
            replace(folder, staging)
        _discard(staging)
        return True

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        """Make a folder to write a snapshot into, which is gone afterwards."""
        try:
            make_folder(self._snapshots)
            with staged(self._staging) as staging:
                yield staging
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise SnapshotError(
                "the disk is full: there is no room for the snapshot",
                where=str(self._snapshots),
                remedy="free some space and run again; the last accepted snapshot is untouched",
            ) from error

    def _install(self, staging: Path, manifest: Manifest) -> Snapshot:
        """Make a complete folder durable and name it; whoever comes second finds the first one's."""
        for name in _files(staging):
            (staging / name).chmod(0o444)
            sync(staging / name)
        for folder in (*_folders(staging), staging):  # They stay movable.
            sync(folder)
        snapshot_id = hashlib.sha256((staging / MANIFEST).read_bytes()).hexdigest()
        target = self._snapshots / snapshot_id
        try:
            staging.rename(target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            snapshot = self.open(snapshot_id)
        else:
            kind = manifest.provenance.kind
            snapshot = Snapshot(id=snapshot_id, path=target, kind=kind, manifest=manifest)
            self._verified[snapshot_id] = (_stamp(target), snapshot)
        # Only now: a folder that may not be written to cannot be moved. Whoever comes second
        # repeats it for a publisher that died in between.
        for folder in (*_folders(target), target):
            folder.chmod(0o555)
        sync(self._snapshots)
        return snapshot

    def _folder(self, snapshot_id: SnapshotId) -> Path:
        if not ID.fullmatch(snapshot_id):
            raise SnapshotError(f"{snapshot_id!r} is no snapshot id; ids are 64 hexadecimal digits")
        return self._snapshots / snapshot_id


def _require(folder: Path) -> None:
    if folder.is_symlink() or not folder.is_dir():
        raise MissingSnapshot(
            f"no snapshot {folder.name[:12]} in this store",
            where=str(folder),
            cause="it was removed by hand, or the ledger belongs to another store",
            remedy="restore the folder from a backup, or set store to the folder that has it",
        )


def _describe(staging: Path, provenance: Provenance, allowed: frozenset[str]) -> Manifest:
    """Describe what was written in a manifest; refuse files that a snapshot may not hold."""
    files = list(_files(staging))
    if not files:
        raise SnapshotError("nothing was written, so there is nothing to publish")
    for name in files:
        if Path(name).suffix not in allowed or name == MANIFEST:
            raise SnapshotError(
                f"{name!r} may not be in a snapshot; allowed: {', '.join(sorted(allowed))}",
                where=name,
                cause="pickled weights and Python files can run code when they are loaded",
                remedy="save weights with safetensors, and only what loading needs",
            )
    entries = (FileEntry.of(name, *digest_of(staging / name)) for name in sorted(files))
    return Manifest(provenance=provenance, files=tuple(entries))


def _verify(snapshot_id: SnapshotId, folder: Path) -> Snapshot:
    """Recompute everything the id promises."""
    present = set(_files(folder))
    if MANIFEST not in present:
        raise _corrupt(folder / MANIFEST, "is missing")
    manifest = _manifest_in(snapshot_id, folder / MANIFEST)
    listed = {entry.path for entry in manifest.files} | {MANIFEST}
    for name in sorted(listed - present):
        raise _corrupt(folder / name, "is missing")
    for name in sorted(present - listed):
        raise _corrupt(folder / name, "is not listed in the manifest")
    for entry in manifest.files:
        if wrong := entry.differs(*digest_of(folder / entry.path)):
            raise _corrupt(folder / entry.path, wrong)
    return Snapshot(id=snapshot_id, path=folder, kind=manifest.provenance.kind, manifest=manifest)


def _manifest_in(snapshot_id: SnapshotId, path: Path) -> Manifest:
    """Read a manifest whose hash is the snapshot's id."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise _corrupt(path, "is missing") from None
    except OSError as error:
        raise _corrupt(path, f"cannot be read ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != snapshot_id:
        raise _corrupt(path, "does not have the hash that names the snapshot")
    return Manifest.from_bytes(content, where=str(path))


def _corrupt(path: Path, how: str) -> SnapshotError:
    return SnapshotError(
        f"{path.name} {how}",
        where=str(path),
        cause="the disk, or someone who edited the folder",
        remedy="restore this snapshot's folder from a backup; nothing was loaded from it",
    )


def _files(folder: Path) -> Iterator[str]:
    """Yield the relative paths of all files below; refuse anything that is not a plain file or folder."""
    for parent, names, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*names, *files)):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise SnapshotError(
                    f"{path.name} is a link or a special file; a snapshot holds its own bytes",
                    where=str(path),
                    remedy="put the file itself in its place",
                )
        yield from (Path(parent, name).relative_to(folder).as_posix() for name in files)


def _copy_files(folder: Path, target: Path) -> None:
    for name in _files(folder):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, target / name)


def _folders(folder: Path) -> Iterator[Path]:
    """Yield all folders below, children before their parents."""
    for parent, names, _ in os.walk(folder, topdown=False):
        yield from (Path(parent, name) for name in names)


def _discard(folder: Path) -> None:
    """Remove a folder; those of snapshots are read-only."""
    for inner in _folders(folder):
        inner.chmod(0o755)
    shutil.rmtree(folder)


def _stamp(folder: Path) -> Stamp:
    stats = ((name, (folder / name).stat()) for name in sorted(_files(folder)))
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats)

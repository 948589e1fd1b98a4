"""Snapshots behind a URL: ``snapshots/<id>/`` with the files of a snapshot and, last of all, its manifest.

An object store has no rename, so the manifest's presence is the commit: files without one are no snapshot,
however many arrived. Its hash is the snapshot's id, and it holds the hash of every other file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from align.errors import SnapshotError
from align.store.durable import digest_of
from align.store.remote import Remote
from align.store.snapshots.manifest import MANIFEST, Manifest
from rollouts.types import SnapshotId

FOLDER = "snapshots"


def send(remote: Remote, snapshot_id: SnapshotId, folder: Path, manifest: Manifest) -> None:
    """Copy a snapshot there, read every file back, and only then let it be one. Repeating is harmless.

    Raises:
        SnapshotError: what lies there is not what was sent; no manifest was written.
    """
    remote_folder, content = f"{FOLDER}/{snapshot_id}", (folder / MANIFEST).read_bytes()
    if remote.read(f"{remote_folder}/{MANIFEST}") == content:
        return
    for entry in manifest.files:
        path = f"{remote_folder}/{entry.path}"
        remote.upload(folder / entry.path, path)
        if wrong := entry.differs(*remote.digest(path)):
            raise SnapshotError(
                f"{entry.path} {wrong}: it did not arrive as it was sent",
                where=remote.place(path),
                remedy="run again; nothing was published",
            )
    remote.write(f"{remote_folder}/{MANIFEST}", content)


def fetch(remote: Remote, snapshot_id: SnapshotId, folder: Path) -> Manifest:
    """Copy a snapshot's files into an empty folder, each verified; returns what its manifest says.

    Raises:
        SnapshotError: it is not there, or its bytes are not those that the id stands for; names the file.
    """
    content, manifest = _read(remote, snapshot_id)
    for entry in manifest.files:
        path = f"{FOLDER}/{snapshot_id}/{entry.path}"
        local = folder / entry.path
        local.parent.mkdir(parents=True, exist_ok=True)
        try:
            remote.download(path, local)
        except FileNotFoundError:
            raise _damaged(remote, path, "is missing") from None
        if wrong := entry.differs(*digest_of(local)):
            raise _damaged(remote, path, wrong)
    (folder / MANIFEST).write_bytes(content)
    return manifest


def manifest_of(remote: Remote, snapshot_id: SnapshotId) -> Manifest:
    """Read the manifest of a remote snapshot; raise SnapshotError where there is none, or another one."""
    return _read(remote, snapshot_id)[1]


def clear(remote: Remote, collected: Collection[SnapshotId] = ()) -> int:
    """Remove what publications that were cut short left, and collected snapshots that are still there;
    returns of how many. Hold the lease first."""
    files = list(remote.versions(FOLDER))
    present = {path.split("/")[1] for path in files}
    complete = {path.split("/")[1] for path in files if path.split("/")[2:] == [MANIFEST]}
    stale = present - (complete - set(collected))
    remote.remove(_manifests_first(path for path in files if path.split("/")[1] in stale))
    return len(stale)


def withdraw(remote: Remote, snapshots: Collection[SnapshotId]) -> None:
    """Remove snapshots: their manifests first, without which they are none."""
    listed = [path for snapshot in snapshots for path in remote.versions(f"{FOLDER}/{snapshot}")]
    remote.remove(_manifests_first(listed))


def sizes(remote: Remote) -> dict[SnapshotId, int]:
    """Return the bytes of every complete or incomplete snapshot there."""
    totals: dict[SnapshotId, int] = {}
    for path, version in remote.versions(FOLDER).items():
        snapshot = path.split("/")[1]
        totals[snapshot] = totals.get(snapshot, 0) + int(version.rpartition("/")[2])
    return totals


def faults(remote: Remote, snapshot_id: SnapshotId) -> Iterator[str]:
    """Yield a sentence about every file of a remote snapshot that is missing or not what was sent."""
    try:
        manifest = manifest_of(remote, snapshot_id)
    except SnapshotError as error:
        yield f"{error.where}: {error.what}"
        return
    for entry in manifest.files:
        path = f"{FOLDER}/{snapshot_id}/{entry.path}"
        try:
            wrong = entry.differs(*remote.digest(path))
        except FileNotFoundError:
            wrong = "is missing"
        if wrong:
            yield f"{remote.place(path)} {wrong}"


def _manifests_first(paths: Iterable[str]) -> list[str]:
    return sorted(paths, key=lambda path: (not path.endswith(f"/{MANIFEST}"), path))


def _read(remote: Remote, snapshot_id: SnapshotId) -> tuple[bytes, Manifest]:
    """Read the bytes of a remote manifest, and parse them."""
    path = f"{FOLDER}/{snapshot_id}/{MANIFEST}"
    content = remote.read(path)
    if content is None:
        raise SnapshotError(
            f"no snapshot {snapshot_id[:12]} in this store",
            where=remote.place(path),
            cause="it was removed by hand, its publication was cut short, or the ledger belongs to "
            "another store",
            remedy="restore it from a backup, or set store to the one that has it",
        )
    if hashlib.sha256(content).hexdigest() != snapshot_id:
        raise _damaged(remote, path, "does not have the hash that names the snapshot")
    return content, Manifest.from_bytes(content, where=remote.place(path))


def _damaged(remote: Remote, path: str, how: str) -> SnapshotError:
    return SnapshotError(
        f"{path.rpartition('/')[2]} {how}",
        where=remote.place(path),
        cause="the store, the way to it, or someone who edited it",
        remedy="restore this file from a backup; nothing was loaded from it",
    )

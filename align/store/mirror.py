"""The records of a store on its far side: all its files but snapshots, copied at every durable point.

Work goes on in a local folder, the cache. `push` is called before the ledger names what was written, `pull`
before anything is read; between machines the far side is the truth, and the ledger's claim lets one runner
write at a time. Files are compared by version, size and time, so what has not changed is not copied again.

    cache/.mirror.json    versions of what was last copied, by path; without it everything is copied anew

What lies there after a crash and is named by no ledger is harmless: it is written again. A checkpoint
counts from its manifest on, which is copied last.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from align.errors import RunError
from align.store.durable import make_folder, replace, sync, write_atomic
from align.store.paths import MIRRORED, StorePaths
from align.store.remote import Remote
from align.store.run_folder import CHECKPOINT, is_of_checkpoint

INDEX = ".mirror.json"
TRIES = 3
"""Number of tries to copy a file that its writer replaces meanwhile."""

Entry = tuple[str, int, int]
"""Version there; size in bytes and time of change in ns here."""


class Mirror:
    """Keeps a local folder and a remote one alike; without a remote one it does nothing.

    Raises (every method):
        RunError: the store cannot be reached.
        UserError: it refuses access.
    """

    def __init__(self, folder: Path, remote: Remote | None = None) -> None:
        self._folder, self.remote = folder, remote

    def push(self) -> None:
        """Copy there what was written here since; when this returns, it is there."""
        if self.remote is None:
            return
        index = self._read_index()
        try:
            for path in sorted(
                StorePaths(self._folder).mirrored(),
                key=lambda path: (path.endswith(CHECKPOINT), path),
            ):
                known, stamp = index.get(path), _stamp(self._folder / path)
                if known is None or known[1:] != stamp:
                    index[path] = (self.remote.upload(self._folder / path, path), *stamp)
        finally:
            self._write_index(index)

    def pull(
        self, *, checkpoints: bool = False, leave: Callable[[str], bool] = lambda path: False
    ) -> None:
        """Copy here what others wrote since.

        Args:
            checkpoints: those, too: only who goes on with a round needs them.
            leave: True for the path of a file that nobody needs any more.
        """
        if self.remote is None:
            return
        index, files = self._read_index(), self.versions()

        def is_needed(path: str) -> bool:
            is_complete = f"{path.rpartition('/')[0]}/{CHECKPOINT}" in files
            is_wanted = not is_of_checkpoint(path) or (checkpoints and is_complete)
            return is_wanted and not leave(path)

        try:
            for path in sorted(filter(is_needed, files)):
                version = files[path]
                known, local = index.get(path), self._folder / path
                if known is not None and known[0] == version and local.is_file():
                    continue
                if fetched := self._fetch(path, version):
                    index[path] = (fetched, *_stamp(local))
        finally:
            self._write_index(index)

    def restore(self, path: str) -> bool:
        """Replace a local file by the one on the far side; return False if there is none."""
        if self.remote is None:
            return False
        version = self.remote.versions(path.rpartition("/")[0]).get(path)
        return self._fetch(path, version) is not None

    def trim(self, folder: Path) -> None:
        """Remove there what is no longer here of a folder."""
        if self.remote is None:
            return
        name = folder.relative_to(self._folder).as_posix()
        gone = [p for p in self.remote.versions(name) if not (self._folder / p).is_file()]
        self.remote.remove(gone)

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the sizes in bytes of all files there below a folder, by path; empty without a remote."""
        versions = {} if self.remote is None else self.remote.versions(folder)
        return {path: int(version.rpartition("/")[2]) for path, version in versions.items()}

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files there; it does not matter whether they are there."""
        if self.remote is None or not paths:
            return
        self.remote.remove(list(paths))
        index, gone = self._read_index(), frozenset(paths)
        self._write_index({path: entry for path, entry in index.items() if path not in gone})

    def versions(self) -> dict[str, str]:
        """Return the versions of all files there, by path; none without a remote."""
        folders = () if self.remote is None else map(self.remote.versions, MIRRORED)
        return {path: version for files in folders for path, version in files.items()}

    def _fetch(self, path: str, version: str | None) -> str | None:
        """Replace a file by the one there; returns its version, None where it has gone meanwhile."""
        assert self.remote is not None
        local = self._folder / path
        make_folder(local.parent)
        staged = local.with_name(f".{local.name}.{uuid.uuid4().hex}")
        try:
            for _ in range(TRIES):
                if version is None:
                    return None
                self.remote.download(path, staged)
                if staged.stat().st_size == int(version.rpartition("/")[2]):
                    sync(staged)
                    replace(staged, local)
                    return version
                version = self.remote.versions(path).get(path)
        except FileNotFoundError:
            return None
        finally:
            staged.unlink(missing_ok=True)
        raise RunError(
            "the file did not arrive whole",
            where=self.remote.place(path),
            cause="the connection broke, or another machine is writing it",
            remedy="run again",
        )

    def _read_index(self) -> dict[str, Entry]:
        assert self.remote is not None
        try:
            data = json.loads((self._folder / INDEX).read_text())
            if data["url"] == self.remote.url:
                return {path: (v, size, time) for path, (v, size, time) in data["files"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return {}

    def _write_index(self, index: dict[str, Entry]) -> None:
        assert self.remote is not None
        content = {"url": self.remote.url, "files": index}
        write_atomic(self._folder / INDEX, json.dumps(content).encode())


ONE_SIDED = Mirror(Path())
"""Mirror of a store that is only local; it does nothing."""


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns

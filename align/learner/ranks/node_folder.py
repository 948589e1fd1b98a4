"""Copies of the run's files on a node that does not see the driver's disk, made by the ranks there.

Files keep their path below the node's own folder, which lies where temporary files do. It ends with the
ranks; what a node left that lost its power is removed by the next ranks that start there.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from align.store.durable import digest_of
from align.store.snapshots.staging import clear_abandoned, staged
from rollouts.errors import RunError


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeFolder:
    """Places of the driver's files on one node."""

    root: Path | None = None
    """Folder of the copies; None: all ranks see the driver's disk, and nothing is copied."""
    sees_driver: bool = True
    """True if the node reads the driver's own files."""

    def read(self, path: Path) -> Path:
        """Return where this node finds a file or folder of the driver's."""
        return path if self.sees_driver else self.copy_of(path)

    def written(self, path: Path) -> Path:
        """Return where this node writes what the driver is to have at a path; its parent exists then."""
        copy = self.copy_of(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        return copy

    def copy_of(self, path: Path) -> Path:
        """Return the place of a copy."""
        return path if self.root is None else self.root / path.relative_to(path.anchor)

    def append(self, path: Path, chunk: bytes) -> None:
        """Add bytes to the copy of a file."""
        copy = self.copy_of(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with copy.open("ab") as file:
            file.write(chunk)

    def digests(self, folder: Path) -> dict[str, tuple[int, str]]:
        """Return size and sha256 of each file in the copy of a folder, or of a file, by its path in it."""
        copy = self.copy_of(folder)
        if copy.is_file():
            return {"": digest_of(copy)}
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        return {path.relative_to(copy).as_posix(): digest_of(path) for path in files}

    def chunk(self, path: Path, offset: int, size: int) -> bytes:
        """Read bytes of a file that this node wrote."""
        with self.copy_of(path).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def remove(self, path: Path) -> None:
        """Remove a copy."""
        if self.root is not None:
            copy = self.copy_of(path)
            shutil.rmtree(copy, ignore_errors=True)
            copy.unlink(missing_ok=True)


def open_root(stack: ExitStack) -> Path:
    """Make the folder of a node's copies, and remove those of ranks that are gone.

    Raises:
        RunError: somebody else has made a folder of its name.
    """
    parent = Path(tempfile.gettempdir()) / f"keel-ranks-{os.getuid()}"
    clear_abandoned(parent)
    parent.mkdir(mode=0o700, exist_ok=True)
    status = parent.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise RunError(
            "the folder for copies of the run's files is not this user's",
            where=str(parent),
            cause="another user of the node made it, and could change what is put there",
            remedy="remove it, or set TMPDIR on the node to a folder of your own",
        )
    return stack.enter_context(staged(parent))

"""Files of environments as they travel to other machines: by content, in the places that they had."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Self

from rollouts.errors import UserError

LARGEST_CODE = 2**26
"""Bytes of all files together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TravellingCode:
    """Content of files, and their places relative to each other."""

    contents: Mapping[str, bytes]
    """Content of every file by its path below the folder that all share."""
    folder: str
    """Path of the current folder below that one; names are relative to it."""

    @classmethod
    def read(cls, paths: Sequence[str], where: str) -> Self:
        """Read files, and all files of folders.

        Args:
            where: place in the campaign file, for messages.

        Raises:
            UserError: there is no such file, or they are too large.
        """
        here = os.getcwd()
        files = [file for path in paths for file in _files(os.path.abspath(path), path, where)]
        size = sum(os.path.getsize(file) for file in files)
        if size > LARGEST_CODE:
            raise UserError(
                f"the files of the environments have {size / 2**20:.0f} MiB, and at most "
                f"{LARGEST_CODE >> 20} travel to other nodes",
                where=where,
                remedy="put large files on a file system that all nodes have, and open them by their "
                "absolute paths",
            )
        root = os.path.commonpath([here, *map(os.path.dirname, files)])
        return cls(
            contents={os.path.relpath(file, root): Path(file).read_bytes() for file in files},
            folder=os.path.relpath(here, root),
        )

    def write(self) -> tuple[Path, Path]:
        """Write the files into a new folder; return it, and the current folder of names below it."""
        root = Path(mkdtemp(prefix="keel-code-"))
        if os.geteuid() == 0:  # A sandbox under root is another user.
            root.chmod(0o755)
        for name, content in self.contents.items():
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        folder = root / self.folder
        folder.mkdir(parents=True, exist_ok=True)
        return root, folder


def _files(path: str, stated: str, where: str) -> Iterator[str]:
    if not os.path.exists(path):
        raise UserError(
            f"there is no {stated} to send to the nodes",
            where=where,
            remedy="correct the path; paths are relative to the campaign file",
        )
    if not os.path.isdir(path):
        yield path
        return
    for folder, _, names in os.walk(path):
        if os.path.basename(folder) != "__pycache__":
            yield from (os.path.join(folder, name) for name in sorted(names))

"""Plain files of a folder, copied without what links lead to: a snapshot is handed on, with all it holds.

A symbolic link may end in the same folder, or among the blobs of a hub's cache; a hard link needs all its
names there. What is opened is checked, not its name: a name may point elsewhere a moment later.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path

from align.errors import UserError


def home_of(folder: Path) -> Path:
    """Return the folder that links of a model may end in: its own, or the hub's cache that it lies in."""
    home = folder.resolve()
    # A hub cache has .../models--ORG--NAME/snapshots/COMMIT, and blobs beside snapshots.
    in_cache = home.parent.name == "snapshots" and home.parents[1].name.startswith("models--")
    return home.parents[1] if in_cache else home


def copy_contained(file: Path, target: Path) -> None:
    """Copy a file's bytes if they are its folder's own.

    Raises:
        UserError: it is no plain file, or a link to a file elsewhere.
    """
    home = home_of(file.parent)
    try:
        # Opening a pipe would wait for somebody to write.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"it cannot be read ({error.strerror})", where=str(file)) from error
    try:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        refuse_foreign(file, os.fstat(descriptor), path, home)
        with os.fdopen(descriptor, "rb", closefd=False) as opened, target.open("wb") as copy:
            shutil.copyfileobj(opened, copy, 1 << 20)
    finally:
        os.close(descriptor)


def refuse_foreign(file: Path, status: os.stat_result, path: Path, home: Path) -> None:
    """Refuse a file that is special, or whose bytes belong to another folder.

    Args:
        file: its name, for the message.
        status: of what the name stands for.
        path: of that, without links.
        home: see `home_of`.
    """
    if not stat.S_ISREG(status.st_mode):
        raise UserError(
            "it is a device, a pipe, a socket or a folder, and not a plain file",
            where=str(file),
            remedy="remove it from the model folder",
        )
    if not path.is_relative_to(home):
        raise UserError(
            "the link points to a file outside the model folder",
            where=str(file),
            cause="a file elsewhere may change unnoticed, and may be nobody's to hand on",
            remedy="replace the link by the file itself",
        )
    # An installer such as uv links the files of packages to its cache.
    is_installed = path.is_relative_to(Path(sys.prefix).resolve())
    if status.st_nlink > 1 and not is_installed and _names_below(home, status) < status.st_nlink:
        raise UserError(
            "the file has another name outside the model folder (a hard link)",
            where=str(file),
            cause="a file elsewhere may change unnoticed, and may be nobody's to hand on",
            remedy=f"make it a file of its own: cp {file.name} copy && mv copy {file.name}",
        )


def _names_below(home: Path, status: os.stat_result) -> int:
    """Count the names of a file below a folder."""
    names = 0
    for parent, _, files in os.walk(home):
        for name in files:
            other = os.lstat(os.path.join(parent, name))
            names += (other.st_dev, other.st_ino) == (status.st_dev, status.st_ino)
    return names

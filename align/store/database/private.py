"""Files and folders of a store that only its user can read, whatever the umask is.

The ledger holds what people wrote, and its folder the key of the inbox and of a server. An older store is
closed to others when it is opened next, and a log line says so.
"""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

OTHERS = stat.S_IRWXG | stat.S_IRWXO
"""Rights of everybody but the owner."""


def make_private(folder: Path) -> None:
    """Make a folder for this user alone; one that exists is left as it is."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not folder.is_dir():
            raise


def close_to_others(path: Path, *, create: bool = False, say: bool = True) -> None:
    """Take the rights on a file or folder of this user away from everybody else.

    Links are left alone, as is what belongs to another user, and a folder that many share (``/tmp``). The
    file is not opened: closing it would give up every lock that SQLite holds on it in this process.

    Args:
        create: a file that is missing is made.
        say: write a log line where others could read it until now.
    """
    try:
        if create:
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # Whoever opens it next says why it cannot be.
    try:
        status = os.fstat(descriptor)
        is_plain = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
        is_shared = bool(status.st_mode & stat.S_ISVTX)
        if is_plain and not is_shared and status.st_uid == os.geteuid() and status.st_mode & OTHERS:
            os.chmod(f"/proc/self/fd/{descriptor}", stat.S_IMODE(status.st_mode) & ~OTHERS)
            if say and (status.st_size or stat.S_ISDIR(status.st_mode)):
                logger.warning("%s was open to other users and now is not", path)
    finally:
        os.close(descriptor)

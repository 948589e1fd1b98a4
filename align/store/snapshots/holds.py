"""Locks of whoever reads a snapshot's folder for long: meanwhile it is neither packed nor removed.

A lock is one of the file system's (``flock``) on the folder itself: it works between processes of every PID
namespace, leaves nothing behind, and goes with its process. On a file system without such locks readers are
not protected, and find that a file is missing.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Hold:
    """Lock of a reader, until it is released or nobody has it any more.

    Raises:
        FileNotFoundError: there is no such folder, or it was removed before the lock was there.
    """

    def __init__(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._close = weakref.finalize(self, os.close, descriptor)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        locked, current = os.fstat(descriptor), os.stat(folder)
        if (locked.st_dev, locked.st_ino) != (current.st_dev, current.st_ino):
            self._close()
            raise FileNotFoundError(folder)

    def release(self) -> None:
        """Let others pack or remove the folder."""
        self._close()


@contextmanager
def unheld(folder: Path) -> Iterator[bool]:
    """Keep new readers from holding a folder for a block; yield False if one holds it already."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True
    finally:
        os.close(descriptor)

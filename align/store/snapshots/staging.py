"""Folders that are being written: their writer holds a lock on each, so nobody removes one from under it.

    <root>/<uuid>/        being written
    <root>/<uuid>.lock    held by the writer; the kernel releases it when the process ends, however it does

The lock is one of the file system's (``flock``): it works from every PID namespace, and over NFS from every
host. On a file system without such locks every folder counts as abandoned.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = ".lock"


@contextmanager
def staged(root: Path) -> Iterator[Path]:
    """Make an empty folder to write into; what is still there when the block ends is removed."""
    folder = root / uuid.uuid4().hex
    lock = _lock_of(folder)
    descriptor = _locked(lock)
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)
        os.close(descriptor)
        with suppress(OSError):
            root.rmdir()


def abandoned(root: Path) -> list[Path]:
    """List what writers that are gone left below a root."""
    entries = sorted(root.iterdir()) if root.is_dir() else []
    return [entry for entry in entries if entry.suffix != LOCK and not _is_written(entry)]


def clear_abandoned(root: Path) -> int:
    """Remove what writers that are gone left below a root; return how many folders."""
    entries = list(root.iterdir()) if root.is_dir() else []
    names = {entry.name.removesuffix(LOCK) for entry in entries}
    count = sum(_cleared(root / name) for name in sorted(names))
    with suppress(OSError):
        root.rmdir()
    return count


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{LOCK}")


def _locked(lock: Path) -> int:
    """Make the file of a lock and hold it; return its descriptor."""
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileNotFoundError:  # Another writer has just removed the root.
            continue
        # Whoever looks at a new lock holds it for an instant, and whoever clears may remove it.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


def _is_written(folder: Path) -> bool:
    """Tell if a folder's writer lives."""
    try:
        descriptor = os.open(_lock_of(folder), os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return False


def _cleared(folder: Path) -> bool:
    """Remove a folder and its lock unless its writer lives; return True if there was a folder."""
    lock = _lock_of(folder)
    descriptor = os.open(lock, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
        existed = folder.exists()
        for parent, _, _ in os.walk(folder):
            os.chmod(parent, 0o755)  # Folders of snapshots are read-only.
        shutil.rmtree(folder, ignore_errors=True)
        folder.unlink(missing_ok=True)  # Earlier versions wrote checkpoints into the root itself.
        lock.unlink(missing_ok=True)
        return existed
    finally:
        os.close(descriptor)

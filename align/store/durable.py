"""Files that survive a power cut: contents reach the disk before a name points at them.

Every file of a store is written here, or into a folder that gets its name here:
`tests/unit/repository/test_durable_writes.py` holds the list of all others, with reasons.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHUNK_BYTES = 1 << 20
"""Bytes hashed at a time."""


def sync(path: Path) -> None:
    """Flush a file's contents, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably; it does not matter whether they are there."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def replace(staged: Path, path: Path) -> None:
    """Give a file or folder whose contents are on the disk its name, durably; a file that had the name
    is gone."""
    os.replace(staged, path)
    sync(path.parent)
    if staged.parent != path.parent:
        sync(staged.parent)


@contextmanager
def replacing(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield the path of a file to write, which replaces ``path`` as a whole when the block ends: a reader
    sees the old content or the new, never a part.

    Args:
        flush: False for what a power cut may take.
    """
    make_folder(path.parent)
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield staged
        if flush:
            sync(staged)
            replace(staged, path)
        else:
            os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes, *, flush: bool = True) -> None:
    """Replace ``path`` as `replacing` does."""
    with replacing(path, flush=flush) as staged:
        staged.write_bytes(content)


def digest_of(path: Path) -> tuple[int, str]:
    """Size in bytes and sha256 of a plain file; OSError for a link."""
    digest, size = hashlib.sha256(), 0
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()

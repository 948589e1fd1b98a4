"""Files that survive a power cut: contents reach the disk before a name points at them."""

from __future__ import annotations

import hashlib
import os
import uuid
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


def replace(staged: Path, path: Path) -> None:
    """Give a file whose contents are on the disk its name, durably; what had the name is gone."""
    os.replace(staged, path)
    sync(path.parent)


def write_atomic(path: Path, content: bytes) -> None:
    """Replace ``path`` as a whole: a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        staged.write_bytes(content)
        sync(staged)
        replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def digest_of(path: Path) -> tuple[int, str]:
    """Size in bytes and sha256 of a plain file; OSError for a link."""
    digest, size = hashlib.sha256(), 0
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()

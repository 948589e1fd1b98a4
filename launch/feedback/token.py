"""The bearer token of a server: a file that only its owner can read, made when there is none."""

from __future__ import annotations

import hmac
import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from align.store.durable import sync
from rollouts.errors import UserError

BYTES = 32
MIN_LENGTH = 16
"""Characters of a token that somebody chose."""


def read_token(file: Path, *, option: str) -> str:
    """Read the token in ``file``; write a new random one where there is no such file.

    Links are followed, so that it may be a mounted Secret. A file of this user that others may read is
    closed to them.

    Args:
        option: of the command line, with which a person names another file.

    Raises:
        UserError: it cannot be read or made, is no plain file, holds no usable token, or everybody may read
            it and this user cannot change that.
    """
    try:
        if not file.exists():
            _make(file)
        # Opening a pipe would wait for somebody to write.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor) as opened:
            _close_to_others(descriptor, file)
            token = opened.read().strip()
    except (OSError, ValueError) as error:
        raise UserError(
            f"the token cannot be read ({error})",
            where=str(file),
            remedy=f"name a file that this user can read, or may make, with {option}",
        ) from error
    if len(token) < MIN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"holds no token of at least {MIN_LENGTH} printable characters without spaces",
            where=str(file),
            remedy="remove the file, and a new token is made",
        )
    return token


def is_bearer(header: str | None, token: str) -> bool:
    """Tell if an ``Authorization`` header carries the token; takes the same time however wrong it is."""
    scheme, _, credentials = (header or "").partition(" ")
    same = hmac.compare_digest(credentials.strip().encode(), token.encode())
    return same and scheme.lower() == "bearer"


def _make(file: Path) -> None:
    """Write a new token into the file, whole or not at all; one that somebody else put there first
    stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_urlsafe(BYTES) + "\n")
            stream.flush()
            os.fsync(descriptor)
        with suppress(FileExistsError):
            os.link(name, file)
        sync(file.parent)
    finally:
        os.unlink(name)


def _close_to_others(descriptor: int, file: Path) -> None:
    """Make a file of ours readable by its owner alone; refuse another's that everybody may read.

    A group is somebody's decision: a Secret for a user other than root is mounted with ``fsGroup``.
    """
    status = os.fstat(descriptor)
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise UserError("is no plain file", where=str(file))
    if mode & 0o077 and status.st_uid == os.geteuid():
        with suppress(OSError):  # Mounted to be read only.
            os.fchmod(descriptor, mode & 0o700)
            return
    if mode & 0o007:
        raise UserError(
            f"everybody may read it (mode {mode:04o}), and this user cannot change that",
            where=str(file),
            remedy=f"chmod o= {file} as its owner; of a mounted Secret, set defaultMode: 0440",
        )

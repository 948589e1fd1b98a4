"""The bearer token of a server: a file that only its owner can read, made when there is none."""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from pathlib import Path

from rollouts.errors import UserError

BYTES = 32
MIN_LENGTH = 16
"""Characters of a token that somebody chose."""


def read_token(file: Path) -> str:
    """The token in ``file``; a new random one where there is no such file.

    A file that others may read is closed to them.

    Raises:
        UserError: it cannot be read or made, is no plain file, or holds no usable token.
    """
    try:
        _make(file)
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor) as opened:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UserError("is no plain file", where=str(file))
            os.fchmod(descriptor, 0o600)
            token = opened.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the token cannot be read ({error})",
            where=str(file),
            remedy="name a file that this user can write with --token-file",
        ) from error
    if len(token) < MIN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"holds no token of at least {MIN_LENGTH} printable characters without spaces",
            where=str(file),
            remedy="remove the file, and a new token is made",
        )
    return token


def is_bearer(header: str | None, token: str) -> bool:
    """Whether an ``Authorization`` header carries the token; takes the same time however wrong it is."""
    scheme, _, given = (header or "").partition(" ")
    same = hmac.compare_digest(given.strip().encode(), token.encode())
    return same and scheme.lower() == "bearer"


def _make(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as made:
        made.write(secrets.token_urlsafe(BYTES) + "\n")

"""The address of a cluster's jobs API: whether it may be talked to, and how it is shown."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from urllib.parse import urlsplit

from launch.cluster.cluster import has_token, is_loopback, secure_token_file
from rollouts.errors import UserError


def check_jobs_address(
    address: str, environ: MutableMapping[str, str], *, insecure: bool
) -> list[str]:
    """Refuse an address that would be talked to without authentication; what there is to know of it.

    Where there is a token, ``environ`` is told to use it.
    """
    try:
        parts = urlsplit(address)
    except ValueError:  # Its message repeats the address.
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"{shown(address)!r} is not the address of a jobs API",
            where="--address",
            cause="jobs are sent to the dashboard of the head node, not to its GCS port",
            remedy="such as http://head:8265",
        )
    notes = []
    if secure_token_file(environ, create=False):
        notes.append("Ray's token file was readable by others; its mode is 0600 now")
    if environ.get("RAY_AUTH_MODE", "") == "" and has_token({**environ, "RAY_AUTH_MODE": "token"}):
        environ["RAY_AUTH_MODE"] = "token"
    far, token = not is_loopback(parts.hostname), has_token(environ)
    if far and not token and not insecure:
        raise UserError(
            f"jobs would be sent to {shown(address)} without authentication",
            where="--address",
            cause="there is no token; a cluster that asks for none runs anybody's code",
            remedy="export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=<file with the cluster's token>; or "
            "pass --insecure-cluster on a network where everyone may run code",
        )
    if far and token and parts.scheme == "http":
        notes.append(
            "http does not encrypt the token; use https, or a tunnel to 127.0.0.1, on a network that "
            "others can read"
        )
    return notes


def shown(address: str) -> str:
    """Return an address for people, without the user and password that may stand in it.

    >>> shown("https://ann:secret@head:8265")
    'https://***@head:8265'
    """
    return re.sub(r"^(\w+://)?.*@", r"\1***@", address)

"""The socket of a server, taken before anything else starts: a port in use is told at once."""

from __future__ import annotations

import socket

from rollouts.errors import UserError

BACKLOG = 1024
"""Connections that may wait to be accepted."""


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        UserError: the address cannot be used, such as a port that is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise UserError(
            f"cannot listen there ({error})",
            where=f"{host}:{port}",
            remedy="choose another --port, or 0 for any free one",
        ) from error

"""Requests whose end two servers could see at different places, refused before anything reads them.

RFC 9112 (sections 6.1 to 6.3) leaves a choice where a request has both ``Transfer-Encoding`` and
``Content-Length``, or lengths that differ. A proxy and the server behind it that choose differently take a
part of one request for another one. The parser refuses most of them; this refuses the rest, whichever
parser is installed. Compressed bodies are refused too: a few kilobytes may stand for gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

CLOSE = {"Connection": "close"}


class Framing:
    """An ASGI application before another one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or hand it on."""
        refused = fault(scope["headers"]) if scope["type"] == "http" else None
        if refused is None:
            await self._app(scope, receive, send)
            return
        status, message = refused
        headers = CLOSE | ({"Accept-Encoding": "identity"} if status == 415 else {})
        await JSONResponse({"error": message}, status, headers)(scope, receive, send)


def fault(headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, str] | None:
    """Return status and reason for headers that leave the end of a request open; None for others.

    >>> fault([(b"content-length", b"3"), (b"transfer-encoding", b"chunked")])
    (400, 'both Content-Length and Transfer-Encoding')
    """
    values: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        values.setdefault(name.lower(), []).append(value.strip().lower())
    lengths, codings = values.get(b"content-length", []), values.get(b"transfer-encoding", [])
    if lengths and codings:
        return 400, "both Content-Length and Transfer-Encoding"
    if len(lengths) > 1 or not all(length.isdigit() for length in lengths):
        return 400, "Content-Length is not one number"
    if codings not in ([], [b"chunked"]):
        return 400, "Transfer-Encoding is not chunked"
    if len(values.get(b"host", [])) > 1:
        return 400, "more than one Host"
    if set(values.get(b"content-encoding", [])) - {b"identity"}:
        return 415, "compressed bodies are not read"
    return None

"""Proxy with the address that stays: it passes requests on byte by byte, and names the snapshot that
answered.

Only what is listed here is passed on. vLLM itself asks for its key under ``/v1`` and a few other prefixes
alone, and would sample for anybody who posts to ``/invocations``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from launch.feedback.body import BadRequest, BodyLimits
from launch.feedback.receive import Crowded, Receiver
from launch.feedback.token import is_bearer
from launch.serving.route import Backend, ChoosingBackend, NoBackend, Route
from rollouts.errors import UserError

PATHS = ("/v1/chat/completions", "/v1/completions")
"""Paths of requests that may hold ``stop``."""


def with_stops(method: str, path: str, body: bytes, stops: Sequence[str]) -> bytes:
    """Return a request's body with these stop texts, unless it names its own or takes none.

    >>> with_stops("POST", "/v1/completions", b'{"prompt": "a"}', ["b"])
    b'{"prompt": "a", "stop": ["b"]}'
    >>> with_stops("POST", "/v1/completions", b'{"prompt": "a", "stop": null}', ["b"])
    b'{"prompt": "a", "stop": null}'
    """
    if not stops or method != "POST" or path not in PATHS:
        return body
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return body  # The server says what is wrong with it.
    if not isinstance(request, dict) or "stop" in request:
        return body
    return json.dumps({**request, "stop": list(stops)}).encode()


PASSED = ("/v1/", "/metrics", "/tokenize", "/detokenize")
"""Beginnings of paths that are passed on, all of them with the key."""
HEALTH = "/health"
SNAPSHOT_HEADER = b"x-keel-snapshot"
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)
"""Headers about one connection and not about the message: RFC 9110, section 7.6.1."""
OURS = frozenset({b"host", b"content-length", b"authorization", b"expect"})
"""Headers of a request that are written anew for the backend."""
AGAIN = {"Retry-After": "5"}
CLOSE = {"Connection": "close"}
"""Headers of an answer after which nothing more of the request is read."""
CONNECT_TRIES, CONNECT_PAUSE_S = 3, 0.2
TIMEOUT = {"connect": 5.0, "read": None, "write": 60.0, "pool": None}
"""Seconds of each phase. A long completion may be silent for as long as its client is patient."""

Headers = list[tuple[bytes, bytes]]


LIMITS = BodyLimits(body_bytes=32 << 20, held_bytes=512 << 20, body_s=60.0)
"""Limits of bodies, which are held until their requests are answered."""


class Refused(Exception):
    """A request that gets an answer of the proxy's own, in the form of OpenAI's errors."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        kind = "server_error" if status >= 500 else "invalid_request_error"
        error = {"message": message, "type": kind, "param": None, "code": status}
        self.response = JSONResponse({"error": error}, status, headers)


class Proxy:
    """An ASGI application over a `Route`."""

    def __init__(
        self,
        route: Route,
        transport: httpx.AsyncBaseTransport,
        *,
        key: str | None,
        say: Callable[[str], None],
        limits: BodyLimits = LIMITS,
        stops: Sequence[str] = (),
    ) -> None:
        self._route, self._transport, self._key, self._say = route, transport, key, say
        self._stops = stops
        self._receiver = Receiver(limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close"})
            return
        request = Request(scope, receive)
        if scope["path"] == HEALTH:
            await self._health()(scope, receive, send)
            return
        try:
            self._admit(request)
            # The whole body: only what is complete can be sent again after a refused connection.
            async with self._receiver.body(request) as body:
                body = with_stops(request.method, scope["path"], body, self._stops)
                await _while_connected(self._relay(request, body, send), receive)
        except Refused as refused:
            await refused.response(scope, receive, send)
        except BadRequest as bad:
            await Refused(bad.status, str(bad), CLOSE).response(scope, receive, send)
        except Crowded:
            crowded = Refused(503, "too much arrives at once; try again", CLOSE | AGAIN)
            await crowded.response(scope, receive, send)
        except ClientDisconnect:
            return

    def _health(self) -> Response:
        """Answer if requests are taken; the answer says nothing else, so it needs no key."""
        now = self._route.now
        is_alive = now is not None and now.alive()
        return JSONResponse({"status": "ok"}) if is_alive else _unavailable().response

    def _admit(self, request: Request) -> None:
        """Refuse a request without the key, or for a path that is not passed on."""
        # Never request.url, in which older versions of Starlette read a path out of the Host header.
        path, bearer = request.scope["path"], request.headers.get("authorization")
        if self._key is not None and not is_bearer(bearer, self._key):
            raise Refused(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})
        # A client library would resolve `..` after the check.
        if not path.startswith(PASSED) or "//" in path or {".", ".."} & set(path.split("/")):
            raise Refused(404, f"no such path; known: {', '.join((HEALTH, *PASSED))}")

    async def _relay(self, request: Request, body: bytes, send: Send) -> None:
        """Ask the backend; ask again only where the connection was refused, so nothing was sent."""
        for again in range(CONNECT_TRIES):
            if again:
                await asyncio.sleep(CONNECT_PAUSE_S)
            try:
                with self._route.lease() as backend:
                    await self._ask(backend, request, body, send)
                return
            except (httpx.ConnectError, NoBackend):
                continue
        raise _unavailable()

    async def _ask(self, backend: Backend, request: Request, body: bytes, send: Send) -> None:
        query: bytes = request.scope["query_string"]
        path: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
        raw_path = path + b"?" + query if query else path
        if request.method == "POST" and request.scope["path"] in PATHS:
            body = await _chosen(backend, body)
        request_to_backend = httpx.Request(
            request.method,
            httpx.URL(backend.url).copy_with(raw_path=raw_path),
            headers=[
                *_passed(request.headers.raw, OURS),
                (b"authorization", b"Bearer " + backend.key.encode()),
            ],
            content=body,
            extensions={"timeout": TIMEOUT},
        )
        try:
            answer = await self._transport.handle_async_request(request_to_backend)
        except httpx.ConnectError:
            raise
        except httpx.TransportError as error:
            raise Refused(502, f"the server failed ({type(error).__name__})") from error
        headers = _passed(answer.headers.raw, {b"server", b"date"})
        headers.append((SNAPSHOT_HEADER, backend.snapshot.encode()))
        start = {"type": "http.response.start", "status": answer.status_code, "headers": headers}
        stream = answer.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        try:
            await send(start)
            async for chunk in stream:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except httpx.TransportError as error:
            # Left unfinished: the client must not take half an answer for a whole one.
            self._say(f"a server broke off in the middle of an answer ({type(error).__name__})")
        else:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await stream.aclose()


async def _chosen(backend: Backend, body: bytes) -> bytes:
    """Return a request's body with the model that its prompt retrieves, if the backend has several."""
    if not isinstance(backend, ChoosingBackend):
        return body
    try:
        return await backend.choose(body)
    except UserError as error:
        raise Refused(400, error.what) from error


async def _while_connected(work: Any, receive: Receive) -> None:
    """Do the work unless the client leaves; then the backend's connection closes and it stops too."""

    async def client_leaves() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(client_leaves())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def _unavailable() -> Refused:
    return Refused(503, "no model is being served now; try again", AGAIN)


def _passed(headers: Iterable[tuple[bytes, bytes]], without: Iterable[bytes]) -> Headers:
    """Return the headers of a message without those of its connection, which it may list itself."""
    lowered = [(name.lower(), value) for name, value in headers]
    listed = [value for name, value in lowered if name == b"connection"]
    of_connection = {word.strip().lower() for value in listed for word in value.split(b",")}
    drop = HOP_BY_HOP | of_connection | set(without)
    return [(name, value) for name, value in lowered if name not in drop]

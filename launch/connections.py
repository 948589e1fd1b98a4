"""Connections of a server: how many it keeps, for how long, and how one ends without losing the answer.

uvicorn closes a connection that is idle after an answer, and waits without an end for the headers of a
first request. A server whose places are all taken refuses everybody, so a few hundred silent connections
would shut it. Here a client that says nothing holds a place only until somebody else needs it.
"""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from uvicorn import Config

KEPT_FILES = 256
"""Open files of a server that are no connections of clients."""
REFUSED = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\n"
    b"connection: close\r\n\r\n"
)
TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionLimits:
    """Limits of the connections of one server."""

    total: int = 512
    """Number of connections at once."""
    per_client: int = 256
    """Number of connections of one address at once."""
    header_s: float = 10.0
    """Seconds from the first byte of a request to the end of its headers, or from the connection on."""
    header_bytes: int = 64 << 10
    idle_s: int = 75
    """Seconds that a connection stays open after an answer."""
    linger_s: float = 10.0
    """Seconds for which the rest of a refused request is read, so that its sender sees the answer."""


class Visitors:
    """All connections of one server, the longest silent of which makes room for a new one."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._open: dict[Guard, str] = {}
        self._by_client: Counter[str] = Counter()

    def admit(self, guard: Guard, client: str) -> bool:
        """Give a connection a place; False where all are taken by requests that are being answered."""
        crowded = self._by_client[client] >= self.limits.per_client
        if crowded or len(self._open) >= self.limits.total:
            silent = next(self._silent(client if crowded else None), None)
            if silent is None:
                return False
            self.leave(silent)
            silent.drop()
        self._open[guard] = client
        self._by_client[client] += 1
        return True

    def answered(self, guard: Guard) -> None:
        """Put a connection behind those that have been silent for longer."""
        if guard in self._open:
            self._open[guard] = self._open.pop(guard)

    def leave(self, guard: Guard) -> None:
        """Free the place of a connection; harmless where it has none."""
        client = self._open.pop(guard, None)
        if client is not None:
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]

    def _silent(self, client: str | None) -> Iterator[Guard]:
        """Yield connections without a request under way: those that never sent one first."""
        for was_answered in (False, True):
            for guard, address in self._open.items():
                if (
                    client in (None, address)
                    and guard.silent
                    and guard.was_answered is was_answered
                ):
                    yield guard


class LingeringTransport:
    """A transport whose `close` waits for the rest of a request, as a reset would take the answer along.

    Everything else is that of the transport inside.
    """

    def __init__(self, inner: asyncio.Transport, guard: Guard) -> None:
        self._inner, self._guard = inner, guard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def is_closing(self) -> bool:
        """Tell if nothing more is answered here."""
        return self._guard.lingering or self._inner.is_closing()

    def write(self, data: bytes) -> None:
        """Send bytes, of which nobody waits for any after the end of the answers."""
        if not self._guard.lingering:
            self._inner.write(data)

    def close(self) -> None:
        """Close the connection, after the rest of a request that has not arrived as a whole."""
        if self.is_closing() or not self._guard.expects_more():
            self._inner.close()
            return
        self._guard.lingering = True
        with suppress(OSError, NotImplementedError):
            self._inner.write_eof()
        with suppress(RuntimeError):
            self._inner.resume_reading()
        self._guard.close_after(self._guard.visitors.limits.linger_s)


class Guard(asyncio.Protocol):
    """Limits before a protocol of uvicorn, whose class comes after this one (see `guarded`)."""

    visitors: Visitors
    cycle: Any
    transport: Any
    lingering = False
    was_answered = False
    _inner: asyncio.Transport | None = None
    _timer: asyncio.TimerHandle | None = None
    _header_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection, or answer at once that there is no room."""
        inner = cast(asyncio.Transport, transport)
        peer = inner.get_extra_info("peername")
        if not self.visitors.admit(self, peer[0] if peer else ""):
            inner.write(REFUSED)
            inner.close()
            return
        self._inner = inner
        super().connection_made(cast(asyncio.Transport, LingeringTransport(inner, self)))
        self.close_after(self.visitors.limits.header_s)

    def data_received(self, data: bytes) -> None:
        """Hand bytes on, unless they end a request that was answered already."""
        if self._inner is None or self.lingering:
            return
        earlier = self.cycle
        super().data_received(data)
        if self.cycle is not earlier:
            self._stop_timer()
            self._header_bytes = 0
        elif self.silent and not self._inner.is_closing():
            self._header_bytes += len(data)
            if self._header_bytes > self.visitors.limits.header_bytes:
                self._inner.write(TOO_LONG)
                self.drop()
            elif self._timer is None:
                self.close_after(self.visitors.limits.header_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Free the place."""
        self._stop_timer()
        self.visitors.leave(self)
        if self._inner is not None:
            super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Note an answer, and go on as uvicorn does; after half a request nothing can follow."""
        self.was_answered = True
        self.visitors.answered(self)
        if self.expects_more():
            self.transport.close()
        super().on_response_complete()  # type: ignore[misc]

    @property
    def silent(self) -> bool:
        """True while no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def expects_more(self) -> bool:
        """Tell if a request has begun whose body has not arrived as a whole."""
        return self.cycle is not None and bool(self.cycle.more_body)

    def drop(self) -> None:
        """Close the connection now."""
        if self._inner is not None:
            self._inner.close()

    def close_after(self, seconds: float) -> None:
        """Close the connection in so many seconds, unless a request arrives before."""
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.drop)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def guarded(limits: ConnectionLimits, base: type[asyncio.Protocol]) -> type[Guard]:
    """Make a protocol class for one server out of one of uvicorn's."""
    protocol = type("GuardedProtocol", (Guard, base), {"visitors": Visitors(limits)})
    return cast(type[Guard], protocol)


def server_config(app: Any, limits: ConnectionLimits, **settings: Any) -> Config:
    """Make uvicorn's settings for a server that strangers may reach."""
    import uvicorn
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    from launch.framing import Framing

    allow_files(limits.total + KEPT_FILES)
    return uvicorn.Config(
        Framing(app),
        http=guarded(limits, AutoHTTPProtocol),
        ws="none",
        # A line for each malformed request would let strangers fill the disk.
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=limits.idle_s,
        h11_max_incomplete_event_size=limits.header_bytes,
        **settings,
    )


def allow_files(wanted: int) -> None:
    """Raise this process's limit of open files where it would be reached before that of connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < wanted:
        most = wanted if hard == unlimited else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))

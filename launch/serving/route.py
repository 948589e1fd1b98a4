"""Route of requests: the backend of the next one, and those that still run elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from rollouts.types import SnapshotId

LOOK_S = 0.02


class Backend(Protocol):
    """Server that answers for one snapshot, and for no other as long as it lives."""

    @property
    def snapshot(self) -> SnapshotId:
        """Snapshot whose weights it holds."""
        ...

    @property
    def url(self) -> str:
        """``http://host:port``."""
        ...

    @property
    def key(self) -> str:
        """Bearer token that it asks for."""
        ...

    def alive(self) -> bool:
        """Tell if its process runs."""
        ...

    async def stop(self) -> None:
        """End it; harmless when it has ended."""
        ...


@runtime_checkable
class ChoosingBackend(Protocol):
    """Backend that holds several models, of which a request's prompt chooses one."""

    async def choose(self, body: bytes) -> bytes:
        """Return the body of a completion request with the model that answers it.

        Raises:
            UserError: the request cannot be answered by one model.
        """
        ...


class NoBackend(Exception):
    """Error that no backend serves at the moment."""


class Route:
    """The backend of the next request. Belongs to one event loop, in which a switch is atomic."""

    def __init__(self) -> None:
        self._now: Backend | None = None
        self._open: Counter[Backend] = Counter()

    @property
    def now(self) -> Backend | None:
        """Backend of the next request."""
        return self._now

    @contextmanager
    def lease(self) -> Iterator[Backend]:
        """Count a request as open on the current backend until the block ends, and yield that backend.

        Raises:
            NoBackend: nothing serves.
        """
        backend = self._now
        if backend is None:
            raise NoBackend
        self._open[backend] += 1
        try:
            yield backend
        finally:
            self._open[backend] -= 1

    def switch(self, backend: Backend | None) -> Backend | None:
        """Send every later request to another backend; returns the one before."""
        before, self._now = self._now, backend
        return before

    async def drained(self, backend: Backend, deadline_s: float) -> int:
        """Wait until no request runs on a backend; returns how many still do after the deadline."""
        until = time.monotonic() + deadline_s
        while (left := self._open[backend]) and time.monotonic() < until:
            await asyncio.sleep(LOOK_S)
        if not left:
            del self._open[backend]
        return left

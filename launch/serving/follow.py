"""Keeps what is served to what is wanted: starts, switches, drains, stops.

A swap sends no request to a server that has not answered one before, and ends no server that still
answers. What does not come up changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from launch.serving.route import Backend, Route
from launch.serving.shelf import SHOWN
from rollouts.errors import RunError
from rollouts.types import SnapshotId

Swap = Literal["overlap", "restart"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How a follower swaps."""

    swap: Swap = "overlap"
    """``overlap``: the new server comes up beside the old one. ``restart``: after it, where memory holds
    only one; requests in between are told to come again."""
    follow: bool = True
    """False: stay with the first snapshot."""
    poll_s: float = 2.0
    """Seconds between two looks at the alias and at the server's process."""
    drain_s: float = 300.0
    """Seconds that requests under way have on a server that is to stop."""
    again_s: float = 60.0
    """Seconds until a snapshot that did not come up is tried again; twice as many each time."""
    max_restarts: int = 3
    """Servers in a row that may end by themselves, each within a minute of its start."""


SETTLED_S = 60.0


class Follower:
    """Owns the servers behind a route.

    Args:
        wanted: says what is to be served now; called in a thread.
        start: makes a server that is healthy and has answered once. Leaves nothing behind when it raises or
            is cancelled.
        say: gets one line for whatever a person should know.
    """

    def __init__(
        self,
        route: Route,
        *,
        wanted: Callable[[], SnapshotId],
        start: Callable[[SnapshotId], Awaitable[Backend]],
        say: Callable[[str], None],
        pace: Pace,
    ) -> None:
        self._route, self._wanted, self._start = route, wanted, start
        self._say, self._pace = say, pace
        self._alive: list[Backend] = []
        self._retiring: asyncio.Task[None] | None = None
        self._failed: SnapshotId | None = None
        self._again_s, self._again_at = pace.again_s, 0.0
        self._ended = 0

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            KeelError: the first server does not come up, or servers keep ending by themselves.
        """
        serving = await self._begin(await asyncio.to_thread(self._wanted))
        started = self._enter(serving)
        while True:
            await asyncio.sleep(self._pace.poll_s)
            before = serving
            if not serving.alive():
                settled = time.monotonic() - started > SETTLED_S
                self._ended = 0 if settled else self._ended + 1
                serving = await self._replace(serving)
            elif self._pace.follow:
                serving = await self._follow(serving)
            if serving is not before:
                started = time.monotonic()

    async def close(self) -> None:
        """Stop every server, whatever it still does."""
        self._route.switch(None)
        if self._retiring is not None:
            self._retiring.cancel()
            await asyncio.gather(self._retiring, return_exceptions=True)
        await asyncio.gather(*map(self._end, list(self._alive)))

    async def _begin(self, snapshot: SnapshotId) -> Backend:
        backend = await self._start(snapshot)
        self._alive.append(backend)
        return backend

    async def _end(self, backend: Backend) -> None:
        await backend.stop()
        if backend in self._alive:
            self._alive.remove(backend)

    def _enter(self, backend: Backend) -> float:
        self._route.switch(backend)
        self._say(f"serving {backend.snapshot[:SHOWN]}")
        return time.monotonic()

    async def _follow(self, serving: Backend) -> Backend:
        try:
            target = await asyncio.to_thread(self._wanted)
        except Exception as error:  # Not looking is no reason to stop serving.
            self._say(f"cannot look at the alias, {serving.snapshot[:SHOWN]} stays: {error}")
            return serving
        waits = target == self._failed and time.monotonic() < self._again_at
        if target == serving.snapshot or waits:
            return serving
        self._say(f"{target[:SHOWN]} is wanted; starting it ({self._pace.swap})")
        if self._retiring is not None:
            await self._retiring
        swap = self._overlap if self._pace.swap == "overlap" else self._restart
        return await swap(serving, target)

    async def _overlap(self, serving: Backend, target: SnapshotId) -> Backend:
        try:
            backend = await self._unless_moved(target)
        except Exception as error:  # Whatever is wrong with the new one, the old one answers.
            self._put_off(serving, target, error)
            return serving
        if backend is None:
            self._say(f"{target[:SHOWN]} is no longer wanted; {serving.snapshot[:SHOWN]} stays")
            return serving
        self._failed = None
        self._enter(backend)
        self._retiring = asyncio.create_task(self._retire(serving))
        return backend

    async def _restart(self, serving: Backend, target: SnapshotId) -> Backend:
        self._route.switch(None)
        await self._retire(serving)
        try:
            backend = await self._begin(target)
            self._failed = None
        except Exception as error:  # Whatever is wrong with the new one, the old one answers.
            self._put_off(serving, target, error)
            backend = await self._begin(serving.snapshot)
        self._enter(backend)
        return backend

    async def _replace(self, ended: Backend) -> Backend:
        """A server in place of one that ended by itself, for what is wanted by now."""
        self._route.switch(None)
        await self._end(ended)
        self._say(f"the server of {ended.snapshot[:SHOWN]} ended by itself; starting it again")
        if self._ended > self._pace.max_restarts:
            raise RunError(
                f"{self._ended} servers in a row ended by themselves",
                where=ended.snapshot[:SHOWN],
                cause="too little memory, or a model that this vLLM cannot run",
                remedy="see the logs in the store's folder serving/",
            )
        backend = await self._begin(ended.snapshot)
        self._enter(backend)
        return backend

    async def _unless_moved(self, target: SnapshotId) -> Backend | None:
        """A server of the target; None when the alias moved on before it was ready."""
        starting = asyncio.create_task(self._begin(target))
        try:
            while not starting.done():
                await asyncio.wait({starting}, timeout=self._pace.poll_s)
                if not starting.done() and await self._moved_from(target):
                    return None
            backend = starting.result()
        finally:
            if not starting.done():
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
        if await self._moved_from(target):
            await self._end(backend)
            return None
        return backend

    async def _moved_from(self, target: SnapshotId) -> bool:
        try:
            return await asyncio.to_thread(self._wanted) != target
        except Exception:  # Looked at again once it is up.
            return False

    async def _retire(self, backend: Backend) -> None:
        """Let a server finish what it has, and end it; also when there is no more time."""
        left = await self._route.drained(backend, self._pace.drain_s)
        if left:
            self._say(f"{left} requests on {backend.snapshot[:SHOWN]} took too long and are cut")
        await self._end(backend)

    def _put_off(self, serving: Backend, target: SnapshotId, error: Exception) -> None:
        self._again_s = 2 * self._again_s if self._failed == target else self._pace.again_s
        self._failed, self._again_at = target, time.monotonic() + self._again_s
        self._say(f"{target[:SHOWN]} did not come up, {serving.snapshot[:SHOWN]} stays: {error}")

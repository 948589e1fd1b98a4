"""Keeps what is served to what is wanted: starts, switches, drains, stops.

A swap sends no request to a server that has not answered one before, and ends no server that still
answers. What does not come up changes nothing. Nothing is waited for without a look at the server that
answers meanwhile: one that ended by itself gets no more requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from launch.serving.route import Backend, Route
from launch.serving.served_alias import SHOWN
from rollouts.errors import RunError
from rollouts.types import SnapshotId

Swap = Literal["overlap", "restart"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SwapPolicy:
    """Settings by which a `Swapper` swaps servers."""

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
    """Starts in a row after a server ended by itself or did not come up again; a server that answers for a
    minute ends the row."""


SETTLED_S = 60.0


class Swapper:
    """Owner of the servers behind a route, which replaces them as the alias moves.

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
        pace: SwapPolicy,
    ) -> None:
        self._route, self._wanted, self._start = route, wanted, start
        self._say, self._pace = say, pace
        self._alive: list[Backend] = []
        self._retiring: asyncio.Task[None] | None = None
        self._failed: SnapshotId | None = None
        self._again_s, self._again_at = pace.again_s, 0.0
        self._ended, self._entered_at = 0, 0.0

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            KeelError: the first server does not come up, or servers keep ending by themselves.
        """
        serving = await self._begin(await asyncio.to_thread(self._wanted))
        self._enter(serving)
        while True:
            await asyncio.sleep(self._pace.poll_s)
            if time.monotonic() - self._entered_at > SETTLED_S:
                self._ended = 0
            if not serving.alive():
                self._notice(serving)
                await self._end(serving)
                self._count(serving.snapshot)
                serving = await self._revive(serving.snapshot)
            elif self._pace.follow:
                serving = await self._follow(serving)

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

    def _enter(self, backend: Backend) -> None:
        self._route.switch(backend)
        self._entered_at = time.monotonic()
        if backend.snapshot == self._failed:
            self._failed = None
        self._say(f"serving {backend.snapshot[:SHOWN]}")

    async def _follow(self, serving: Backend) -> Backend:
        if self._retiring is not None and not self._retiring.done():
            return serving  # There is memory for two. What is wanted then is asked then.
        target = await self._look()
        if target is None or target == serving.snapshot or self._waits(target):
            return serving
        self._say(f"{target[:SHOWN]} is wanted; starting it ({self._pace.swap})")
        swap = self._overlap if self._pace.swap == "overlap" else self._restart
        return await swap(serving, target)

    async def _look(self) -> SnapshotId | None:
        """Return the snapshot that the alias names; None while that cannot be known."""
        try:
            return await asyncio.to_thread(self._wanted)
        except Exception as error:  # Not looking is no reason to stop serving.
            self._say(f"cannot look at the alias, what serves stays: {error}")
            return None

    def _waits(self, target: SnapshotId) -> bool:
        """Tell if a snapshot did not come up, and it is too early to try again."""
        return target == self._failed and time.monotonic() < self._again_at

    async def _overlap(self, serving: Backend, target: SnapshotId) -> Backend:
        try:
            backend = await self._unless_moved(target, wanted=target, beside=serving)
        except Exception as error:  # Whatever is wrong with the new one, the old one answers.
            self._put_off(target, error)
            backend = None
        if backend is None:
            if serving.alive():
                self._say(f"{serving.snapshot[:SHOWN]} stays")
            return serving
        self._enter(backend)
        self._retiring = asyncio.create_task(self._retire(serving))
        return backend

    async def _restart(self, serving: Backend, target: SnapshotId) -> Backend:
        self._route.switch(None)
        await self._retire(serving)
        try:
            backend = await self._unless_moved(target, wanted=target)
        except Exception as error:  # Whatever is wrong with the new one, the old one did run.
            self._put_off(target, error)
            backend = None
        if backend is None:
            return await self._revive(serving.snapshot)
        self._enter(backend)
        return backend

    async def _revive(self, last: SnapshotId) -> Backend:
        """Start a server where none is left: of what the alias names by now, or else of what ran
        before.

        Raises:
            RunError: none came up, as often as servers may end in a row.
        """
        while True:
            named_snapshot = await self._look() if self._pace.follow else None
            target = (
                last if named_snapshot is None or self._waits(named_snapshot) else named_snapshot
            )
            self._say(f"starting {target[:SHOWN]} again")
            try:
                backend = await self._unless_moved(target, wanted=named_snapshot)
            except Exception as error:  # What was lacking may be there the next time.
                if target == last:
                    self._say(f"{target[:SHOWN]} did not come up: {error}")
                else:
                    self._put_off(target, error)
                self._count(target, error)
                await asyncio.sleep(self._pace.poll_s * 2**self._ended)
                continue
            if backend is not None:
                self._enter(backend)
                return backend

    def _count(self, snapshot: SnapshotId, error: Exception | None = None) -> None:
        """Count one more server that ended by itself or did not come up.

        Raises:
            RunError: it is one too many.
        """
        self._ended += 1
        if self._ended > self._pace.max_restarts:
            raise RunError(
                f"{self._ended} servers in a row ended by themselves or did not come up",
                where=snapshot[:SHOWN],
                cause=str(error or "too little memory, or a model that this vLLM cannot run"),
                remedy="see the logs in the store's folder serving/",
            ) from error

    async def _unless_moved(
        self, target: SnapshotId, *, wanted: SnapshotId | None, beside: Backend | None = None
    ) -> Backend | None:
        """Start a server of the target; return None when the alias moved on before it was ready.

        Where the one beside it ends meanwhile, this one is nearest to answering, and the start goes on.

        Args:
            wanted: what the alias named when the target was chosen; None: it is not looked at.
            beside: the server that answers until this one does.
        """
        starting = asyncio.create_task(self._begin(target))
        done = moved = False
        try:
            while not (done or moved):
                await asyncio.wait({starting}, timeout=self._pace.poll_s)
                done = starting.done()
                if beside is not None:
                    self._notice(beside)
                moved = await self._moved_from(wanted)
        finally:
            if not starting.done():
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
        if not moved:
            return starting.result()
        if not starting.cancelled() and starting.exception() is None:
            await self._end(starting.result())
        return None

    async def _moved_from(self, before: SnapshotId | None) -> bool:
        if before is None:
            return False
        now = await self._look()
        if now is None or now == before:
            return False
        self._say(f"{before[:SHOWN]} is no longer wanted")
        return True

    def _notice(self, backend: Backend) -> None:
        """Send nothing more to a server that ended by itself."""
        if not backend.alive() and self._route.now is backend:
            self._route.switch(None)
            self._say(f"the server of {backend.snapshot[:SHOWN]} ended by itself")

    async def _retire(self, backend: Backend) -> None:
        """Let a server finish what it has, and end it; also when there is no more time."""
        left = await self._route.drained(backend, self._pace.drain_s)
        if left:
            self._say(f"{left} requests on {backend.snapshot[:SHOWN]} took too long and are cut")
        await self._end(backend)

    def _put_off(self, target: SnapshotId, error: Exception) -> None:
        self._again_s = 2 * self._again_s if self._failed == target else self._pace.again_s
        self._failed, self._again_at = target, time.monotonic() + self._again_s
        self._say(f"{target[:SHOWN]} did not come up: {error}")

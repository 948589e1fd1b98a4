"""Children of the workers of environments, as their owner sees them: started, asked, kept for the next
episode, killed.

All of it runs on one event loop, so hundreds of episodes wait at once without a thread each.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from rewards.environments.plan import EnvironmentsPlan
from rewards.environments.worker import KILL, START, command
from rewards.isolation.process import Worker, WorkerEnded
from rewards.isolation.protocol import LARGEST_FRAME
from rollouts.errors import RunError

GRACE_S = 10.0
"""Seconds beyond the limit of a request after which a child that did not end it itself is killed."""


class ChildLost(Exception):
    """A child that gave no answer; the message says why. It must be killed."""

    def __init__(self, reason: str, *, late: bool = False) -> None:
        super().__init__(reason)
        self.late = late


class Child:
    """A process with an object of each environment that it served."""

    def __init__(self, home: WorkerProcess, number: int, channel: socket.socket) -> None:
        self.home, self.number = home, number
        self._channel = channel
        self._unread = bytearray()
        self._is_awaited, self._is_killed = False, False
        channel.setblocking(False)

    async def send(self, request: Mapping[str, Any]) -> None:
        """Send a request.

        Raises:
            ChildLost: the process has ended.
        """
        data = json.dumps(request).encode()
        frame = len(data).to_bytes(4, "big") + data
        try:
            with self._in_use():
                await asyncio.get_running_loop().sock_sendall(self._channel, frame)
        except (OSError, ValueError):  # ValueError: the socket was closed here
            raise ChildLost("the environment's process has ended") from None

    async def receive(self, limit_s: float) -> dict[str, Any]:
        """Return the next message.

        Raises:
            ChildLost: none came in time, or what came is none.
        """
        try:
            with self._in_use():
                async with asyncio.timeout(limit_s + GRACE_S):
                    return await self._message()
        except TimeoutError:
            raise ChildLost(f"no answer within {limit_s:g} s", late=True) from None
        except (OSError, ValueError, RecursionError) as error:
            raise ChildLost(f"the environment's process failed: {error}") from error

    async def _message(self) -> dict[str, Any]:
        size = int.from_bytes(await self._exactly(4), "big")
        if size > LARGEST_FRAME:
            raise ChildLost(f"the environment sent {size} bytes in one message")
        message = json.loads(await self._exactly(size))
        if not isinstance(message, dict):
            raise ChildLost(f"the environment sent a {type(message).__name__}")
        return message

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keep the socket open in the block, and close it after one in which the child was killed."""
        self._is_awaited = True
        try:
            yield
        finally:
            self._is_awaited = False
            if self._is_killed:
                self._channel.close()

    async def _exactly(self, size: int) -> bytes:
        loop, unread = asyncio.get_running_loop(), self._unread
        while len(unread) < size:
            part = await loop.sock_recv(self._channel, 2**16)
            if not part:
                raise ChildLost("the environment's process ended: a tool crashed it or ended it")
            unread += part
        data = bytes(unread[:size])
        del unread[:size]
        return data

    @property
    def has_ended(self) -> bool:
        """True if the process has closed its socket, or said something unasked."""
        if self._unread:
            return True
        try:
            self._channel.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def kill(self) -> None:
        """End the process and its group, also when it hangs; whoever awaits it gets a `ChildLost`."""
        self._is_killed = True
        if self._is_awaited:  # The event loop still reads the socket: only its reader may close it.
            with suppress(OSError):
                self._channel.shutdown(socket.SHUT_RDWR)
        else:
            self._channel.close()
        self.home.kill(self.number)


class WorkerProcess:
    """A worker that can be replaced, and the children that wait for an episode."""

    def __init__(self, plan: EnvironmentsPlan) -> None:
        self._plan = plan
        self._worker: Worker | None = None
        self._starting = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._idle: list[Child] = []
        self._is_over = False
        self.busy = 0
        """Episodes under way."""
        self.restarts = 0
        """Workers that replaced one that had ended."""

    async def child(self) -> Child:
        """Return a child for an episode: one that has served another, or a new one.

        Raises:
            UserError: the code of an environment cannot be loaded.
            RunError: no worker can be started.
        """
        while self._idle:
            child = self._idle.pop()
            if not child.has_ended:
                return child
            child.kill()
        for _ in range(2):
            worker = await self._started()
            near_end, far_end = socket.socketpair()
            with far_end:
                number = next(self._numbers)
                try:
                    worker.hand_over(command(START, number), far_end.fileno())
                    return Child(self, number, near_end)
                except OSError:
                    near_end.close()
                    if self._worker is worker:  # Another episode may have replaced it by now.
                        self._worker = None
                        self.restarts += 1
                        await asyncio.to_thread(worker.end)
        raise RunError("the worker of an environment ended twice before an episode began")

    async def _started(self) -> Worker:
        async with self._starting:
            if self._worker is None:
                try:
                    plan = self._plan.worker_plan()
                    worker = await asyncio.to_thread(Worker, plan)
                except WorkerEnded as ended:
                    raise RunError(
                        "no worker could be started for the environments",
                        where=self._plan.where or None,
                        cause=ended.failure.trace,
                    ) from ended
                if self._is_over:  # It was ended while it started.
                    await asyncio.to_thread(worker.end)
                    raise RunError("the environments were ended before an episode began")
                self._worker = worker
            return self._worker

    def keep(self, child: Child) -> None:
        """Take a child back for another episode."""
        self._idle.append(child)

    def kill(self, number: int) -> None:
        """Tell the worker to kill a child."""
        if self._worker is not None:
            with suppress(OSError):
                self._worker.hand_over(command(KILL, number))

    def end(self) -> None:
        """End the worker and all its children; one that is starting ends as soon as it has started."""
        self._is_over = True
        for child in self._idle:
            child.kill()
        self._idle.clear()
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.end()

"""One environment object in a child process: episode after episode, one request at a time.

All code of the user runs in the main thread, where a signal ends a call that takes too long: sleep, I/O,
loops, regular expressions and large numbers alike. The calls of one turn that are sync run in order, then
all async ones together, as in TRL.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import signal
import sys
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from rewards.call import PartFailure, read_value
from rewards.environments.adapters.base import AdaptedEnvironment
from rewards.environments.observations import Late, ToolText, error_text, raised_text, text_of
from rewards.environments.state import public_state
from rewards.environments.toolset import (
    GET_REWARD,
    GET_TURN_REWARD,
    LoadedEnvironment,
    Tool,
)
from rollouts.values import from_json

AGAIN_S = 1.0
"""Seconds after which a call that swallowed its interruption is interrupted again."""
SHORTEST_S = 0.001
"""Seconds below which no call is begun: a timer of none would never end it."""
LOOP_S = 0.5
"""Seconds that async calls have to end after their deadline before the loop itself is interrupted."""
NO_TIME = "not called: the episode has no time left for calls"


class EnvironmentFault(Exception):
    """An environment that could not do what an episode needs; the message says why."""


class Instance:
    """One object of an environment with its tools."""

    def __init__(self, environment: LoadedEnvironment, most: int) -> None:
        self._environment, self._most = environment, most
        self._object: Any = None
        self._tools: dict[str, Tool] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self, row: Mapping[str, Any], seed: int, limit_s: float) -> str | None:
        """Begin an episode with an object that is made at the first one; return the text of its reset.

        Args:
            seed: of random numbers that are drawn from the generators of a process: children that are
                forked from one worker would otherwise all draw the same.

        Raises:
            EnvironmentFault: either raised, took too long, or returned no text.
        """
        seed_generators(seed)
        if self._tools is None:
            with _fault("the constructor", limit_s):
                self._object = self._environment.construct()
            self._tools = self._environment.tools_of(self._object)
        if self._object is None:
            return None
        columns = {name: from_json(value) for name, value in row.items()}
        with _fault("reset", limit_s):
            text = self._finished(self._object.reset(**columns))
        if text is None:
            return None
        shown = text_of(text, self._most)
        if not isinstance(text, str | list) or shown.failed:
            raise EnvironmentFault(f"reset returned a {type(text).__name__}, not a string or None")
        return shown.text

    def call(
        self, calls: Sequence[Mapping[str, Any]], limit_s: float, left_s: float
    ) -> Iterator[tuple[int, ToolText, float]]:
        """Make the calls of one turn; yield the place of each, what it brought, and its seconds.

        Args:
            limit_s: for each call.
            left_s: for all of them, what the episode has left; calls beyond it are not made.
        """
        waiting: dict[int, Awaitable[Any]] = {}
        for index, request in enumerate(calls):
            allowed_s = min(limit_s, left_s)
            if allowed_s < SHORTEST_S:
                yield index, error_text(NO_TIME, "late", self._most), 0.0
                continue
            since = perf_counter()
            result = self._attempt(request["name"], request["arguments"], allowed_s)
            left_s -= (seconds := perf_counter() - since)
            if isinstance(result, ToolText):
                yield index, result, seconds
            else:
                waiting[index] = result
        if waiting:
            yield from self._gathered(waiting, max(SHORTEST_S, min(limit_s, left_s)))

    def turn(self, limit_s: float) -> dict[str, Any]:
        """Return what the environment says of the turn: its reward, and if the episode is over."""
        reward = None
        if callable(getattr(type(self._object), GET_TURN_REWARD, None)):
            reward = self._number(GET_TURN_REWARD, limit_s)
        with _fault("the attribute done", limit_s):
            is_done = getattr(self._object, "done", False) is True
        return {"reward": reward, "done": is_done}

    def close(self, messages: Sequence[Mapping[str, Any]], limit_s: float) -> dict[str, Any]:
        """Return the reward of the episode, None where the environment gives none, and its state.

        Args:
            messages: prompt and all turns, for environments of other packages.

        Raises:
            EnvironmentFault: ``get_reward`` raised, took too long, or returned no number.
        """
        if self._object is None:
            return {"reward": None, "state": {}}
        if isinstance(self._object, AdaptedEnvironment):
            self._object.messages = messages
        reward = None
        if callable(getattr(type(self._object), GET_REWARD, None)):
            reward = self._number(GET_REWARD, limit_s)
        with _fault("reading its attributes", limit_s):
            state = public_state(self._object)
        return {"reward": reward, "state": state}

    def _number(self, method: str, limit_s: float) -> float | None:
        with _fault(method, limit_s):
            value = read_value(self._finished(getattr(self._object, method)()))
        if isinstance(value, PartFailure):
            raise EnvironmentFault(f"{method} {value.reason}")
        return value

    def _attempt(
        self, name: str, arguments: Mapping[str, Any], limit_s: float
    ) -> ToolText | Awaitable[Any]:
        """Call a tool; return the text of its result, or what is to be awaited."""
        tools = self._tools or {}
        tool = tools.get(name)
        if tool is None:
            known = ", ".join(tools) or "none"
            message = f"there is no tool {name!r}; the tools are: {known}"
            return error_text(message, "unknown", self._most)
        try:
            inspect.signature(tool).bind(**arguments)
        except TypeError as error:
            return error_text(f"wrong arguments for {name!r}: {error}", "arguments", self._most)
        try:
            with limited(limit_s):
                result = tool(**arguments)
                return result if inspect.isawaitable(result) else text_of(result, self._most)
        except Late:
            return self._late(limit_s)
        except BaseException as error:  # a tool may raise anything, sys.exit included
            return raised_text(error, self._most)

    def _gathered(
        self, waiting: Mapping[int, Awaitable[Any]], limit_s: float
    ) -> Iterator[tuple[int, ToolText, float]]:
        """Wait for the async calls of a turn, all at once."""
        texts: dict[int, ToolText] = {}
        seconds: dict[int, float] = {}
        since = perf_counter()

        async def finish(index: int, awaitable: Awaitable[Any]) -> None:
            try:
                async with asyncio.timeout(limit_s):
                    texts[index] = text_of(await awaitable, self._most)
            except TimeoutError as error:
                # A tool's own TimeoutError is its error; ours has no text.
                texts[index] = raised_text(error, self._most) if str(error) else self._late(limit_s)
            except Late:
                raise
            except BaseException as error:
                texts[index] = raised_text(error, self._most)
            seconds[index] = perf_counter() - since

        async def finish_all() -> None:
            await asyncio.gather(*(finish(index, each) for index, each in waiting.items()))

        try:
            with limited(limit_s + LOOP_S):
                self._running_loop().run_until_complete(finish_all())
        except Late:  # a coroutine that blocked the loop
            self._loop = None
        for index in waiting:
            took_s = seconds.get(index, perf_counter() - since)
            yield index, texts.get(index) or self._late(limit_s), took_s

    def _finished(self, value: Any) -> Any:
        """Return the value, or what an awaitable gives."""
        if inspect.isawaitable(value):
            return self._running_loop().run_until_complete(_awaited(value))
        return value

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop

    def _late(self, limit_s: float) -> ToolText:
        return error_text(f"no answer within {limit_s:g} s", "late", self._most)


def seed_generators(seed: int) -> None:
    """Set the seeds of this process's generators; those of packages only where they are imported."""
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(seed)


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


@contextmanager
def limited(limit_s: float) -> Iterator[None]:
    """End the block with `Late` after ``limit_s`` seconds, and again until it ends."""

    def interrupt(*_: object) -> None:
        raise Late

    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, limit_s, AGAIN_S)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0.0)


@contextmanager
def _fault(what: str, limit_s: float) -> Iterator[None]:
    """Turn whatever the user's code raises in the block into an `EnvironmentFault`."""
    try:
        with limited(limit_s):
            yield
    except Late:
        raise EnvironmentFault(f"{what} took more than {limit_s:g} s") from None
    except BaseException as error:
        raise EnvironmentFault(f"{what} raised {type(error).__name__}: {error}") from error

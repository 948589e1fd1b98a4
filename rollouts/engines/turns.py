"""Conversations with engines: requests that join others which are being sampled.

`SteppedConversation` serves every engine in this process that samples a token of all requests at a time;
`Waves` every other one, with a call of `generate` for what was asked meanwhile.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rollouts.engines.protocol import (
    Arrivals,
    Conversation,
    OpenEngine,
    SampleRequest,
    SampleResult,
)
from rollouts.types import Completion


class Generates(Protocol):
    """An object that answers requests, all at once."""

    def generate(self, requests: Sequence[SampleRequest]) -> list[SampleResult]:
        """Sample every request once; results in request order."""
        ...


def conversation_with(engine: Generates) -> Conversation:
    """Open a conversation with any engine."""
    return engine.open() if isinstance(engine, OpenEngine) else Waves(engine)


class Waves:
    """Conversation with an engine that takes no requests while it samples: `arrivals` waits for all."""

    def __init__(self, engine: Generates) -> None:
        self._engine = engine
        self._waiting: list[SampleRequest] = []

    def ask(self, requests: Sequence[SampleRequest]) -> None:
        """Keep the requests for the next wave."""
        self._waiting += requests

    def arrivals(self, timeout_s: float) -> list[SampleResult]:
        """Sample what was asked since the last time, however long it takes."""
        wave, self._waiting = self._waiting, []
        return self._engine.generate(wave) if wave else []

    def close(self) -> None:
        """Forget what was not begun."""
        self._waiting = []


@dataclass(eq=False, slots=True)
class OpenRequest:
    """One request under way on an engine in this process."""

    request: SampleRequest
    answered: list[tuple[OpenRequest, SampleResult]] = field(repr=False)
    """List of the caller that takes the answer."""

    def answer(self, completions: Sequence[Completion]) -> None:
        """Hand the completions over to the caller."""
        result = SampleResult(id=self.request.id, completions=tuple(completions))
        self.answered.append((self, result))


class SteppedEngine(Protocol):
    """Engine in this process that samples one token of everything under way at a time."""

    def add(self, opened: Sequence[OpenRequest]) -> None:
        """Let requests join what is under way; one that cannot be sampled is answered as failed."""
        ...

    def step(self) -> None:
        """Sample the next token of everything, and answer what has ended."""
        ...

    def drop(self, opened: Collection[OpenRequest]) -> None:
        """Sample these no further; those that are answered do not matter."""
        ...


class SteppedConversation:
    """Conversation with a `SteppedEngine`, which samples while somebody waits."""

    def __init__(self, engine: SteppedEngine) -> None:
        self._engine = engine
        self._under_way: set[OpenRequest] = set()
        self._answered: list[tuple[OpenRequest, SampleResult]] = []

    def ask(self, requests: Sequence[SampleRequest]) -> None:
        """Let the requests join what the engine samples."""
        self._begin(requests)

    def arrivals(self, timeout_s: float) -> list[SampleResult]:
        """Step the engine until a request is answered or the time is over."""
        return [result for _, result in self._finished(timeout_s)]

    def stream(self, requests: Sequence[SampleRequest]) -> Arrivals:
        """Yield the results of these requests as they come, each with its index; then close."""
        try:
            opened = self._begin(requests)
            indices = {each: index for index, each in enumerate(opened)}
            while self._under_way:
                yield [(indices[each], result) for each, result in self._finished(math.inf)]
        finally:
            self.close()

    def close(self) -> None:
        """Take what is not finished out of the engine."""
        self._engine.drop(self._under_way)
        self._under_way = set()

    def _begin(self, requests: Sequence[SampleRequest]) -> list[OpenRequest]:
        opened = [OpenRequest(request, self._answered) for request in requests]
        try:
            self._engine.add(opened)
        except BaseException:
            self._engine.drop(opened)
            raise
        self._under_way.update(opened)
        return opened

    def _finished(self, timeout_s: float) -> list[tuple[OpenRequest, SampleResult]]:
        deadline = time.monotonic() + timeout_s
        while self._under_way and not self._answered:
            self._engine.step()
            if time.monotonic() >= deadline:
                break
        # Another thread that waits for the engine may answer more meanwhile: they stay.
        fresh = self._answered[:]
        del self._answered[: len(fresh)]
        self._under_way.difference_update(each for each, _ in fresh)
        return fresh

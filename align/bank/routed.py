"""Engine whose requests are answered by the adapters that their prompts retrieve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from time import perf_counter
from typing import TypeVar

from rollouts.engines.protocol import (
    Conversation,
    KnownEngine,
    ReplacingEngine,
    RolloutEngine,
    SampleRequest,
    SampleResult,
    ScoreRequest,
    SyncReport,
    Ticket,
    WeightUpdate,
)
from rollouts.engines.turns import conversation_with
from rollouts.types import Mix, PromptIds

Request = TypeVar("Request", SampleRequest, ScoreRequest)
Retrieve = Callable[[Sequence[PromptIds]], list[Mix]]
"""Gives the mix of each prompt, by the prompt alone."""

BASE = "base"
"""Name of what answers a prompt for which no adapter is held."""


@dataclass(kw_only=True, slots=True)
class RoutingRecord:
    """Choices of adapters since the record was begun."""

    choices: list[tuple[PromptIds, str]] = field(default_factory=list)
    """Prompt of each request in order, and the adapter that has most of its mix."""
    seconds: float = 0.0
    """Wall time of retrieval: encoding of prompts and comparison with the keys."""

    def routes(self, items: int) -> tuple[str, ...]:
        """Return the adapter of each item, where each has one prompt; else nothing.

        Requests that follow each other with one prompt, as for the choices of a question, are one item's.

        Args:
            items: number of items that were asked for.
        """
        each = [adapter for _, adapter in self.choices]
        runs = [adapter for (_, adapter), _ in groupby(self.choices)]
        return next((tuple(routes) for routes in (each, runs) if len(routes) == items), ())


class RoutedEngine:
    """Wrapper of a `RolloutEngine` that gives each request the mix of its prompt, unless it names one."""

    def __init__(self, engine: RolloutEngine, retrieve: Retrieve) -> None:
        self._engine, self._retrieve = engine, retrieve
        self._record = RoutingRecord()

    def take_record(self) -> RoutingRecord:
        """Return the record of what was asked since the last call, and begin another."""
        record, self._record = self._record, RoutingRecord()
        return record

    def submit(self, requests: Sequence[SampleRequest]) -> Ticket:
        """Begin to sample; see `RolloutEngine.submit`."""
        mixes = self._mixes([request.prompt_ids for request in requests])
        return self._engine.submit(list(map(_routed, requests, mixes)))

    def generate(self, requests: Sequence[SampleRequest]) -> list[SampleResult]:
        """Sample every request once; results in request order."""
        return self.submit(requests)()

    def open(self) -> Conversation:
        """Begin a conversation; what its first prompt retrieves answers all turns of an episode."""
        return _RoutedConversation(conversation_with(self._engine), self._mixes)

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        """Return the logprobs of completions under the adapters that their prompts retrieve."""
        mixes = self._mixes([request.prompt_ids for request in requests])
        return self._engine.score(list(map(_routed, requests, mixes)))

    def sync(self, update: WeightUpdate) -> SyncReport:
        """Hand weights on to the engine."""
        return self._engine.sync(update)

    def about(self) -> Mapping[str, str]:
        """Return what the engine says of itself; see `KnownEngine`."""
        return self._engine.about() if isinstance(self._engine, KnownEngine) else {}

    @property
    def replaced(self) -> Sequence[str]:
        """Reasons of replaced engines; see `ReplacingEngine`."""
        return self._engine.replaced if isinstance(self._engine, ReplacingEngine) else ()

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()

    def _mixes(self, prompts: Sequence[PromptIds]) -> list[Mix]:
        started = perf_counter()
        mixes = self._retrieve(prompts)
        self._record.seconds += perf_counter() - started
        self._record.choices += zip(prompts, map(adapter_of, mixes), strict=True)
        return mixes


class _RoutedConversation:
    """Conversation whose requests have the mix of the prompt that they began with."""

    def __init__(self, conversation: Conversation, retrieve: Retrieve) -> None:
        self.inner, self._retrieve = conversation, retrieve
        self._mixes: dict[str, Mix] = {}

    def ask(self, requests: Sequence[SampleRequest]) -> None:
        new = [request for request in requests if request.follows not in self._mixes]
        mixes = self._retrieve([request.prompt_ids for request in new])
        self._mixes |= {request.id: mix for request, mix in zip(new, mixes, strict=True)}
        for request in requests:
            self._mixes.setdefault(request.id, self._mixes.get(request.follows or "", ()))
        self.inner.ask([_routed(request, self._mixes[request.id]) for request in requests])

    def arrivals(self, timeout_s: float) -> list[SampleResult]:
        return self.inner.arrivals(timeout_s)

    def close(self) -> None:
        self.inner.close()


def _routed(request: Request, mix: Mix) -> Request:
    return request if request.mix is not None else replace(request, mix=mix)


def adapter_of(mix: Mix) -> str:
    """Return the adapter that has most of a mix.

    >>> from rollouts.types import Increment
    >>> adapter_of((Increment("a", 0, 0.4), Increment("b", 1, 0.35), Increment("b", 0, 0.25)))
    'b'
    >>> adapter_of(())
    'base'
    """
    weights: dict[str, float] = {}
    for increment in mix:
        weights[increment.adapter] = weights.get(increment.adapter, 0.0) + increment.weight
    return max(weights, key=lambda name: weights[name], default=BASE)

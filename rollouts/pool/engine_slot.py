"""One engine's place in the pool: the Ray actor that fills it now, and the one that replaces it.

A slot launches, watches and kills an actor; it decides nothing. The actor builds its engine in a
call of its own and not in its constructor, so that the reason of a failed start comes back whole.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from rollouts.engines.protocol import (
    Arrivals,
    InFlightEngine,
    KnownEngine,
    RolloutEngine,
    SampleRequest,
    SampleResult,
    ScoreRequest,
    StreamingEngine,
    SyncReport,
    TransferEngine,
    WeightUpdate,
)
from rollouts.engines.turns import conversation_with
from rollouts.machine.silence import Silence
from rollouts.pool.placement import Bundle, Room

MAIL = "mail"
"""Concurrency group of `EngineActor.deposit` and `EngineActor.ask`, which must not wait for the actor's
running call."""

EngineFactory = Callable[[], RolloutEngine]
"""Builds the engine inside its actor; must be picklable."""


class EngineActor:
    """Holds one engine in a process of its own."""

    def __init__(self, factory: EngineFactory) -> None:
        self._factory = factory
        self._engine: RolloutEngine | None = None
        self._door = threading.Lock()
        self._listens = False
        self._asked: list[SampleRequest] = []

    def start(self) -> int:
        """Build the engine; return the id of the process it lives in."""
        self._engine = self._factory()
        return os.getpid()

    def about(self) -> dict[str, str]:
        """See `KnownEngine.about`; of an engine that is none, nothing."""
        engine = self._started()
        return dict(engine.about()) if isinstance(engine, KnownEngine) else {}

    def stream(self, requests: Sequence[SampleRequest]) -> Arrivals:
        """See `StreamingEngine.stream`; of an engine that is none, everything at the end."""
        engine = self._started()
        if isinstance(engine, StreamingEngine):
            yield from engine.stream(requests)
        else:
            yield list(enumerate(engine.generate(requests)))

    def converse(self, requests: Sequence[SampleRequest]) -> Iterator[list[SampleResult]]:
        """Sample the requests and those that `ask` brings meanwhile, and yield results as they come.

        Ends as soon as nothing is left to do: engines take other calls in between.
        """
        conversation = conversation_with(self._started())
        num_open = 0
        with self._door:
            self._listens = True
        try:
            while requests or num_open:
                if requests:
                    conversation.ask(requests)
                num_open += len(requests)
                results = conversation.arrivals(0.0)
                num_open -= len(results)
                if results:
                    yield results
                with self._door:
                    requests, self._asked = self._asked, []
                    self._listens = bool(requests or num_open)
        finally:
            with self._door:
                self._listens, self._asked = False, []
            conversation.close()

    def ask(self, requests: Sequence[SampleRequest]) -> bool:
        """Let requests join those of a running `converse`; return False if none is running."""
        with self._door:
            if self._listens:
                self._asked += requests
            return self._listens

    def generate(self, requests: Sequence[SampleRequest]) -> list[SampleResult]:
        """See `RolloutEngine.generate`."""
        return self._started().generate(requests)

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        """See `RolloutEngine.score`."""
        return self._started().score(requests)

    def sync(self, update: WeightUpdate) -> SyncReport:
        """See `RolloutEngine.sync`."""
        return self._started().sync(update)

    def transfer(self, verb: str, info: Any, version: str) -> None:
        """See `TransferEngine.transfer`; called by the learner."""
        engine = self._started()
        if not isinstance(engine, TransferEngine):
            raise TypeError(f"a {type(engine).__name__} takes weights through host memory alone")
        engine.transfer(verb, info, version)

    def deposit(self, update: WeightUpdate) -> SyncReport:
        """See `InFlightEngine.deposit`; called on a thread of its own beside a running call."""
        engine = self._started()
        if not isinstance(engine, InFlightEngine):
            raise TypeError(f"a {type(engine).__name__} takes no weights while it samples")
        return engine.deposit(update)

    def _started(self) -> RolloutEngine:
        if self._engine is None:
            raise RuntimeError("the engine did not start")
        return self._engine


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """Settings with which the actors of a pool are started."""

    factory: EngineFactory
    environment: Mapping[str, str]
    bundles: Sequence[Bundle]
    """Resources that one engine takes: those of its actor, and of its workers where they are Ray's."""
    start_deadline_s: float


@dataclass(kw_only=True, slots=True)
class EngineSlot:
    """The mutable state of one place in the pool."""

    index: int
    launch: Launch
    room: Room
    """Placement group of the whole pool, or of this engine alone where its workers are Ray's."""
    actor: Any = None
    pid: int | None = None
    starting: list[Any] = field(default_factory=list)
    """Calls that must succeed before the engine may work: its start, then the weights it needs."""
    deadline: float = 0.0
    """Monotonic time, in seconds, at which the start must be over."""
    busy: bool = False
    is_behind: bool = False
    """True if it has not the weights of the others, which it can only be sent together with them."""
    failures: int = 0
    """Failures in a row; an answered call ends the row."""
    tokens: int = 0
    """Tokens its engines sampled so far."""
    silence: Silence = field(default_factory=Silence)
    """Time since its engine was given work or answered."""

    @property
    def idle(self) -> bool:
        """True if the engine can take a call now."""
        return not self.starting and not self.busy and not self.is_behind

    def fill(self, weights: Any | None) -> None:
        """Launch an actor, and give it ``weights`` (an object ref) before anything else."""
        import ray

        alone = len(self.launch.bundles) > 1
        options = {
            **(self.room.leader_options() if alone else self.room.options(self.index)),
            # The pool itself replaces actors: a restarted one would come back without its weights.
            "max_restarts": 0,
            "runtime_env": {"env_vars": dict(self.launch.environment)},
        }
        remote = ray.remote(concurrency_groups={MAIL: 1})(EngineActor)
        self.actor = remote.options(**options).remote(self.launch.factory)
        self.pid, self.busy = None, False
        self.deadline = time.monotonic() + self.launch.start_deadline_s
        self.starting = [self.actor.start.remote()]
        if weights is not None:
            self.starting.append(self.actor.sync.remote(weights))

    def finish_start(self, version: str | None) -> None:
        """Verify what the start and the loads returned; raises what they raised."""
        import ray

        pid, *reports = ray.get(self.starting)
        if reports and reports[-1].version != version:
            raise RuntimeError(f"it holds weights {reports[-1].version!r} instead of {version!r}")
        self.pid, self.starting = pid, []

    def end_actor(self) -> None:
        """End the actor's process but keep the actor in the slot: the caller that waits for it replaces
        it."""
        import ray

        with suppress(ray.exceptions.RayError, ValueError):
            ray.kill(self.actor, no_restart=True)

    def kill(self) -> None:
        """End the actor's process, whatever it is doing."""
        import ray

        actor, self.actor = self.actor, None
        if actor is not None and ray.is_initialized():
            with suppress(ray.exceptions.RayError, ValueError):
                ray.kill(actor, no_restart=True)

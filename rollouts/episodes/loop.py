"""Many episodes at once: a turn goes to the engine as soon as its observations are there.

While some episodes wait for their tools the engine samples the others. Ids and seeds of all requests follow
from the episode and its turn, so a step that is asked again asks the same, whatever finishes first.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from rollouts.engines.protocol import Conversation, SampleRequest, SampleResult
from rollouts.engines.turns import SteppedConversation, Waves
from rollouts.episodes.actor import Actor, Scene

POLL_S = 0.005
"""Longest wait for the engine while tools run."""
IDLE_S = 0.5
"""Longest wait where only one side can answer."""
GATHER_S = 1.0
"""Longest wait for tools before an engine that answers whole batches is asked the next one."""
MOMENT_S = 0.05
"""Longest wait for tools before an engine in this process samples the next token."""

MOST_OPEN = 256
"""Most environments that are open at once; the other episodes begin as these end."""

Delivery = list[tuple[int, SampleResult]]
"""Results that are ready together, each with the index of its request."""


@dataclass(kw_only=True, slots=True)
class ActingTimes:
    """Seconds of acting, and those of them in which the engine had something to sample."""

    seconds: float = 0.0
    sampling_s: float = 0.0
    tools_s: float = 0.0
    """Seconds in which some episode waited for its environment."""


@dataclass(kw_only=True)
class EpisodeLoop:
    """Episodes of many prompts, and prompts that are answered in one turn, in one conversation."""

    conversation: Conversation
    requests: Sequence[SampleRequest]
    scenes: Sequence[Scene | None]
    """Scene of each request; None for a prompt that is answered in one turn."""
    overlap: ActingTimes = field(default_factory=ActingTimes)
    stopped: bool = False
    """True once nobody waits for the results."""

    def __post_init__(self) -> None:
        self._actors: dict[int, list[Actor]] = {
            index: [Actor(scene=scene, number=number) for number in range(request.n)]
            for index, (request, scene) in enumerate(zip(self.requests, self.scenes, strict=True))
            if scene is not None
        }
        self._plain = {r.id: i for i, r in enumerate(self.requests) if i not in self._actors}
        self._in_turn: dict[str, tuple[int, Actor]] = {}
        """Episodes by the id of the request that the engine has of them."""
        self._waiting: list[tuple[int, Actor]] = []
        """Episodes that wait for their environments."""
        self._to_begin = deque((i, actor) for i, actors in self._actors.items() for actor in actors)
        self._moment_s = MOMENT_S
        """Time that tools are given before the next token; it shrinks while they take longer."""

    def run(self) -> Iterator[Delivery]:
        """Run until every episode has ended; yield each prompt's results once they are complete."""
        try:
            self._ask([request for request in self.requests if request.id in self._plain])
            while self._is_under_way and not self.stopped:
                self._begin()
                if delivery := [*self._from_environments(), *self._from_engine()]:
                    yield delivery
        finally:
            self._abandon()

    @property
    def _is_under_way(self) -> bool:
        return bool(self._to_begin or self._waiting or self._in_turn or self._plain)

    def _begin(self) -> None:
        """Open environments, as many as may be open."""
        while self._to_begin and len(self._waiting) + len(self._in_turn) < MOST_OPEN:
            index, actor = self._to_begin.popleft()
            actor.begin()
            self._waiting.append((index, actor))

    def _from_environments(self) -> Delivery:
        """Let every episode go on whose environment has answered."""
        ready: list[tuple[int, Actor]] = []
        waiting: list[tuple[int, Actor]] = []
        for pair in self._waiting:  # Each is looked at once: it may answer meanwhile.
            (ready if pair[1].future.done() else waiting).append(pair)
        self._waiting = waiting
        return self._go_on([(index, actor, actor.advance()) for index, actor in ready])

    def _from_engine(self) -> Delivery:
        """Take turns that were sampled; wait where nothing else can happen."""
        began, is_sampling = time.monotonic(), bool(self._in_turn or self._plain)
        calls: list[Future[Any]] = [actor.future for _, actor in self._waiting]
        results: list[SampleResult] = []
        if not is_sampling:
            wait(calls, timeout=IDLE_S, return_when=FIRST_COMPLETED)
        elif calls and self._gathers(calls):
            pass
        else:
            results = self.conversation.arrivals(POLL_S if calls else IDLE_S)
        self.overlap.seconds += (seconds := time.monotonic() - began)
        self.overlap.sampling_s += seconds * is_sampling
        self.overlap.tools_s += seconds * bool(calls)
        return self._take(results)

    def _gathers(self, calls: Sequence[Future[Any]]) -> bool:
        """Give tools a moment, so that what is sampled next has their episodes; True if some answered."""
        conversation = innermost(self.conversation)
        if isinstance(conversation, Waves):
            return bool(wait(calls, timeout=GATHER_S, return_when=ALL_COMPLETED).done)
        if not isinstance(conversation, SteppedConversation):  # It samples meanwhile.
            return False
        done, late = wait(calls, timeout=self._moment_s, return_when=ALL_COMPLETED)
        # Waiting pays where it gathers everyone: few large batches cost less than many small ones.
        self._moment_s = self._moment_s / 2 if late else min(2 * self._moment_s, MOMENT_S)
        return bool(done)

    def _take(self, results: Sequence[SampleResult]) -> Delivery:
        """Let episodes go on with the turns that were sampled."""
        delivery, moved = [], []
        for result in results:
            if result.id in self._plain:
                delivery.append((self._plain.pop(result.id), result))
            else:
                index, actor = self._in_turn.pop(result.id)
                moved.append((index, actor, actor.take(result.completions[0])))
        return [*delivery, *self._go_on(moved)]

    def _go_on(self, moved: Sequence[tuple[int, Actor, SampleRequest | None]]) -> Delivery:
        """Ask for next turns, wait for environments, and hand over prompts of which all have ended."""
        requests = []
        for index, actor, request in moved:
            if request is not None:
                self._in_turn[request.id] = index, actor
                requests.append(request)
            elif actor.completion is None:
                self._waiting.append((index, actor))
        self._ask(requests)
        touched = {index for index, actor, _ in moved if actor.completion is not None}
        return [
            (index, self._result(index))
            for index in sorted(touched)
            if all(actor.completion is not None for actor in self._actors[index])
        ]

    def _ask(self, requests: Sequence[SampleRequest]) -> None:
        if requests:
            self.conversation.ask(requests)

    def _result(self, index: int) -> SampleResult:
        """Return the episodes of a prompt behind the tokens that all of them begin with."""
        actors = self._actors[index]
        prompts = [actor.prompt_ids for actor in actors if actor.prompt_ids]
        shared = common_start(prompts) if prompts else self.requests[index].prompt_ids
        completions = tuple(actor.completion_behind(shared) for actor in actors)
        return SampleResult(id=self.requests[index].id, completions=completions, prompt_ids=shared)

    def _abandon(self) -> None:
        """Give up what has not ended."""
        for actor in (actor for actors in self._actors.values() for actor in actors):
            if actor.completion is None:
                actor.scene.environments.drop(actor.key)
        self.conversation.close()


def innermost(conversation: Any) -> Any:
    """Return the conversation that others are wrapped around, each in the next one's ``inner``."""
    while hasattr(conversation, "inner"):
        conversation = conversation.inner
    return conversation


def common_start(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the tokens that all rows begin with.

    >>> common_start([(1, 2, 3), (1, 2, 4, 5)])
    (1, 2)
    """
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    return tuple(column[0] for column in columns)

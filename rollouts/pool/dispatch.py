"""One call to many engines: chunks out, answers in, until every item has exactly one answer.

Samples are handed over as they are finished, scores a chunk at a time. What a chunk still lacks when its
engine dies or is late goes to another engine; an item that keeps failing is given up and answered with a
`DispatchFailure`. Which engines there are, and replacing them, is the fleet's business.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rollouts.engines.protocol import SampleResult, WeightLoadError
from rollouts.errors import KeelError
from rollouts.pool.engine_slot import EngineSlot
from rollouts.pool.fleet import Fleet, reason_of

Verb = Literal["stream", "generate", "score"]


@dataclass(frozen=True, slots=True)
class DispatchFailure:
    """Answer to a request that was given up."""

    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Flight:
    """A call on its way: which items, on which engine, until when."""

    slot: EngineSlot
    chunk: tuple[int, ...]
    deadline: float
    left: set[int] = field(default_factory=set)
    """Indices of the chunk's items that have no answer yet."""

    @property
    def rest(self) -> tuple[int, ...]:
        return tuple(index for index in self.chunk if index in self.left)


class Dispatch:
    """One call to sample or score: chunks out, answers in, until every item has its answer."""

    def __init__(
        self,
        fleet: Fleet,
        verb: Verb,
        items: Sequence[Any],
        chunks: Sequence[tuple[int, ...]],
        *,
        deadline_s: float,
    ) -> None:
        self._fleet, self._verb, self._items = fleet, verb, items
        self._deadline_s = deadline_s
        self._queue = deque(chunks)
        self._flights: dict[Any, _Flight] = {}
        self._answers: dict[int, Any] = {}
        self._attempts = [0] * len(items)

    def run(self) -> list[Any]:
        """Wait for all items; return one answer or `DispatchFailure` per item, in order.

        A second call returns them again.
        """
        for _ in self.arriving():
            pass
        return [self._answers[i] for i in range(len(self._items))]

    def arriving(self) -> Iterator[list[tuple[int, Any]]]:
        """Yield answers as they come: those that are ready together, each with the index of its item."""
        num_yielded = 0
        try:
            while True:
                # Answers keep the order in which they came.
                fresh = list(self._answers.items())[num_yielded:]
                num_yielded += len(fresh)
                if fresh:
                    yield fresh
                if num_yielded == len(self._items):
                    return
                if num_yielded == len(self._answers):
                    self.send()
                    self._receive()
        finally:
            self.leave()

    def leave(self) -> None:
        """Stop waiting: the engines finish the calls they are busy with, and count as free now."""
        for flight in self._flights.values():
            flight.slot.busy = False

    def send(self) -> None:
        """Give every idle engine a chunk, and wait for nothing."""
        for slot in self._fleet.slots:
            if self._queue and slot.idle:
                chunk = self._queue.popleft()
                call = getattr(slot.actor, self._verb)
                if self._verb == "stream":
                    call = call.options(num_returns="streaming")
                ref = call.remote([self._items[i] for i in chunk])
                slot.busy = True
                slot.silence.restart()
                deadline = time.monotonic() + self._deadline_s
                self._flights[ref] = _Flight(
                    slot=slot, chunk=chunk, deadline=deadline, left=set(chunk)
                )

    def _receive(self) -> None:
        """Wait for the next answer, the next engine to start, or the next deadline."""
        import ray

        starting = {slot.starting[-1]: slot for slot in self._fleet.slots if slot.starting}
        deadlines = [flight.deadline for flight in self._flights.values()]
        deadlines += [slot.deadline for slot in starting.values()]
        silences = [flight.slot.silence.left_s for flight in self._flights.values()]
        timeout = max(0.0, min([min(deadlines) - time.monotonic(), *silences]))
        done, _ = ray.wait([*self._flights, *starting], num_returns=1, timeout=timeout)
        for ref in done:
            if ref in starting:
                self._fleet.settle_start(starting[ref])
            else:
                self._land(ref, self._flights[ref])
        if not done:
            self._enforce_deadlines(starting)

    def _enforce_deadlines(self, starting: dict[Any, EngineSlot]) -> None:
        """Replace the engines that started too slowly, or did not answer in time."""
        now = time.monotonic()
        for slot in starting.values():
            if slot.deadline <= now:
                self._fleet.replace(slot, self._fleet.slow_start(slot))
        for ref, flight in list(self._flights.items()):
            if flight.deadline <= now:
                del self._flights[ref]
                reason = f"no answer within {self._deadline_s:g} s"
                self._fleet.replace(flight.slot, reason)
                self._retry(flight, reason, blame_items=False)
            else:
                what = "scores" if self._verb == "score" else "prompts"
                owed = f"{len(flight.left)} {what}"
                self._fleet.tell_silent(flight.slot, owed, self._deadline_s)

    def _land(self, ref: Any, flight: _Flight) -> None:
        """Take what a call has brought: answers, or a failure, after which the rest is queued again."""
        import ray

        try:
            answer = ray.get(next(ref) if self._verb == "stream" else ref)
            results = answer if self._verb == "stream" else enumerate(answer)
        except StopIteration:
            self._end(ref, flight)
            self._retry(flight, "it left out requests", blame_items=True)
        except ray.exceptions.RayTaskError as error:
            self._end(ref, flight)
            # A refused input leaves the engine as it was; after anything else its state is unknown.
            if not isinstance(error.cause, (ValueError, TypeError, KeelError)):
                self._fleet.replace(flight.slot, reason_of(error))
            blame_items = not isinstance(error.cause, WeightLoadError)
            self._retry(flight, reason_of(error), blame_items=blame_items)
        except ray.exceptions.RayError as error:
            self._end(ref, flight)
            self._fleet.replace(flight.slot, reason_of(error))
            self._retry(flight, reason_of(error), blame_items=False)
        else:
            self._keep(results, flight)
            if not flight.left:
                self._end(ref, flight)

    def _keep(self, results: Iterable[tuple[int, Any]], flight: _Flight) -> None:
        """Keep the answers that have come to some items of a chunk."""
        flight.slot.failures = 0
        flight.slot.silence.restart()
        for position, result in results:
            index = flight.chunk[position]
            flight.left.discard(index)
            self._answers[index] = result
            if isinstance(result, SampleResult):
                flight.slot.tokens += sum(len(c.token_ids) for c in result.completions)

    def _end(self, ref: Any, flight: _Flight) -> None:
        """Forget the call, and mark its engine as free."""
        del self._flights[ref]
        flight.slot.busy = False

    def _retry(self, flight: _Flight, reason: str, *, blame_items: bool) -> None:
        """Queue what is left of a chunk again, or give its only item up.

        An engine's death is its own fault the first time. A raised error, or a second death, may be
        the fault of one item: the others are then sent apart from it, one by one.
        """
        rest = flight.rest
        for index in rest:
            self._attempts[index] += 1
        attempts = max((self._attempts[index] for index in rest), default=0)
        if len(rest) == 1 and attempts >= 2:
            detail = f"engine {flight.slot.index} failed on it {attempts} times: {reason}"
            self._answers[rest[0]] = DispatchFailure(detail)
        elif blame_items or attempts >= 2:
            self._queue.extend((index,) for index in rest)
        elif rest:
            self._queue.appendleft(rest)

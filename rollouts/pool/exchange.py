"""Requests that join engines which are sampling already, until each has its answer.

Every engine answers them in one call, `EngineActor.converse`, which runs as long as it has something to do;
`EngineActor.ask` brings it more meanwhile. What an engine owes when it dies or is late goes to another one
under the same id; a request that keeps failing is given up and answered as failed. A request that goes on
from an earlier one is sent to the engine that has its prefix, unless that is clearly busier.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rollouts.engines.protocol import SampleRequest, SampleResult, WeightLoadError
from rollouts.errors import KeelError
from rollouts.pool.balance import engine_for
from rollouts.pool.engine_slot import MAIL, EngineSlot
from rollouts.pool.fleet import Fleet, reason_of
from rollouts.types import Completion

LOOK_S = 30.0
"""Longest time in seconds between two looks at the engines."""


@dataclass(eq=False, kw_only=True, slots=True)
class Caller:
    """A conversation as the exchange knows it."""

    answers: list[SampleResult] = field(default_factory=list)
    """Results that are to be handed over."""
    under_way: set[str] = field(default_factory=set)
    """Ids of the requests without an answer."""
    homes: dict[str, Any] = field(default_factory=dict)
    """Actor that answered each request, by id."""
    failure: BaseException | None = None
    """Error that ended the conversation, whoever met it."""


@dataclass(eq=False, kw_only=True, slots=True)
class Turn:
    """One request on its way."""

    request: SampleRequest
    caller: Caller
    home: Any = None
    """Actor that has its prefix; None: nobody."""
    attempts: int = 0
    """Number of engines that failed while they had it."""
    is_suspect: bool = False
    """True if its engine must answer nothing else beside it: it may be the reason of the failures."""


@dataclass(eq=False, kw_only=True, slots=True)
class EngineLine:
    """Call of one engine that requests join while it runs."""

    slot: EngineSlot
    stream: Any = None
    """Results of the running call; None: none is running."""
    turns: dict[str, tuple[Turn, float]] = field(default_factory=dict)
    """Requests that are its own, by id, and the monotonic time at which each must be answered."""
    unsent: list[Turn] = field(default_factory=list)
    """Requests of its own that the engine was not sent yet."""
    asks: dict[Any, tuple[Turn, ...]] = field(default_factory=dict)
    """Calls that bring requests, as long as nobody knows whether they reached the running one."""

    @property
    def load(self) -> int:
        """Number of completions that the engine owes."""
        return sum(turn.request.n for turn, _ in self.turns.values())

    @property
    def owes(self) -> int:
        """Number of requests that the engine was sent and has not answered."""
        return len(self.turns) - len(self.unsent)

    @property
    def is_open(self) -> bool:
        """True if the engine takes more requests."""
        return self.slot.idle and not any(turn.is_suspect for turn, _ in self.turns.values())

    @property
    def is_clear(self) -> bool:
        """True if requests can be sent: it is known whether the engine has the ones before."""
        return self.slot.idle and (self.stream is not None or not self.asks)

    @property
    def is_quiet(self) -> bool:
        """True if the engine works on nothing."""
        return self.stream is None and not self.asks and not self.owes


class Exchange:
    """All conversations of a pool.

    Args:
        fleet: engines; none of them may be busy with a `Dispatch` while the exchange sends or waits.
        max_num_seqs: completions that an engine samples at a time.
        deadline_s: seconds within which an engine must answer a request that it was sent.
    """

    def __init__(self, fleet: Fleet, *, max_num_seqs: int, deadline_s: float) -> None:
        self._fleet, self._max_num_seqs, self._deadline_s = fleet, max_num_seqs, deadline_s
        self._queue: deque[Turn] = deque()
        self._lines: dict[int, EngineLine] = {}
        self.num_failed = 0
        """Requests that were given up and answered as failed."""

    @property
    def waits(self) -> bool:
        """True if some request is not sent yet."""
        return bool(self._queue) or any(line.unsent for line in self._lines.values())

    @property
    def is_quiet(self) -> bool:
        """True if no engine works on a request."""
        return all(line.is_quiet for line in self._lines.values())

    def add(self, requests: Iterable[SampleRequest], caller: Caller) -> None:
        """Queue requests: those that go on from an earlier one before those that begin.

        Raises:
            ValueError: a request of this id is under way already.
        """
        requests = list(requests)
        ids = [request.id for request in requests]
        doubled = next(
            (i for n, i in enumerate(ids) if i in caller.under_way or i in ids[:n]), None
        )
        if doubled is not None:
            raise ValueError(f"a request {doubled!r} is under way already; ids must be unique")
        continued: list[Turn] = []
        for request in requests:
            home = caller.homes.get(request.follows or "")
            turn = Turn(request=request, caller=caller, home=home)
            (continued if request.follows else self._queue).append(turn)
        self._queue.extendleft(reversed(continued))
        caller.under_way.update(ids)

    def forget(self, caller: Caller) -> None:
        """Drop the requests of a caller that are not sent; what engines sample counts for nobody."""
        self._queue = deque(turn for turn in self._queue if turn.caller is not caller)
        for line in self._lines.values():
            for turn in [turn for turn in line.unsent if turn.caller is caller]:
                line.unsent.remove(turn)
                del line.turns[turn.request.id]
        caller.under_way.clear()

    def send(self) -> None:
        """Send queued requests to engines that have room, and wait for nothing."""
        lines = {
            slot.index: self._lines.setdefault(slot.index, EngineLine(slot=slot))
            for slot in self._fleet.slots
        }
        while self._queue:
            index = self._engine_for(self._queue[0], lines)
            if index is None:
                break
            turn = self._queue.popleft()
            lines[index].turns[turn.request.id] = turn, math.inf
            lines[index].unsent.append(turn)
        for line in lines.values():
            if line.unsent and line.is_clear:
                self._send(line)

    def receive(self) -> None:
        """Take in what has come: answers, deaths, starts and deadlines that have passed."""
        import ray

        while refs := self.refs():
            # Each answer counts, so a failure that comes with it finds only what is left.
            ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0)
            for ref in ready:
                owner = refs[ref]
                if isinstance(owner, EngineSlot):
                    self._fleet.settle_start(owner)
                elif ref is owner.stream:
                    self._land(owner)
                elif ref in owner.asks:
                    self._land_ask(owner, ref)
            if not ready:
                break
        self._enforce_deadlines()

    def refs(self) -> dict[Any, EngineLine | EngineSlot]:
        """List the calls that something will come of, each with whom it concerns."""
        refs: dict[Any, EngineLine | EngineSlot] = {
            slot.starting[-1]: slot for slot in self._fleet.slots if slot.starting
        }
        for line in self._lines.values():
            refs |= dict.fromkeys(line.asks, line)
            if line.stream is not None:
                refs[line.stream] = line
        return refs

    def seconds_left(self) -> float:
        """Return the seconds until the next deadline, or `LOOK_S` where that is sooner."""
        deadlines = [slot.deadline for slot in self._fleet.slots if slot.starting]
        deadlines += [d for line in self._lines.values() for _, d in line.turns.values()]
        next_deadline = min(deadlines, default=math.inf)
        silences = [line.slot.silence.left_s for line in self._lines.values() if line.owes]
        return max(0.0, min([LOOK_S, next_deadline - time.monotonic(), *silences]))

    def abandon(self, failure: BaseException) -> None:
        """End all conversations that have requests under way; the engines finish them for nobody."""
        for turn in self._all_turns():
            turn.caller.failure = failure
        self._lines.clear()
        self._queue.clear()

    def _all_turns(self) -> Iterator[Turn]:
        yield from self._queue
        for line in self._lines.values():
            yield from (turn for turn, _ in line.turns.values())

    def _engine_for(self, turn: Turn, lines: dict[int, EngineLine]) -> int | None:
        """Choose the engine of a request; None if it has to wait."""
        loads = {
            index: line.load
            for index, line in lines.items()
            if line.is_open and turn.request.id not in line.turns
        }
        if turn.is_suspect:
            return next((index for index, load in loads.items() if not load), None)
        home = next((index for index in loads if lines[index].slot.actor is turn.home), None)
        return engine_for(turn.request.n, loads, self._max_num_seqs, home)

    def _send(self, line: EngineLine) -> None:
        if not line.owes:
            line.slot.silence.restart()
        turns, line.unsent = line.unsent, []
        deadline = time.monotonic() + self._deadline_s
        line.turns |= {turn.request.id: (turn, deadline) for turn in turns}
        requests = [turn.request for turn in turns]
        actor = line.slot.actor
        if line.stream is None:
            line.stream = actor.converse.options(num_returns="streaming").remote(requests)
        else:
            ref = actor.ask.options(concurrency_group=MAIL).remote(requests)
            line.asks[ref] = tuple(turns)

    def _land_ask(self, line: EngineLine, ref: Any) -> None:
        """Send again what came too late for the call that was running."""
        import ray

        turns = line.asks.pop(ref)
        try:
            has_joined = ray.get(ref)
        except ray.exceptions.RayError:
            has_joined = False  # It is dead, which its running call says, or the next one.
        if not has_joined:
            missed = [
                turn
                for turn in turns
                if line.turns.get(turn.request.id, (None,))[0] is turn and turn not in line.unsent
            ]
            line.turns |= {turn.request.id: (turn, math.inf) for turn in missed}
            line.unsent = [*missed, *line.unsent]

    def _land(self, line: EngineLine) -> None:
        """Take what a call has brought: answers, its end, or a failure."""
        import ray

        try:
            results = ray.get(next(line.stream))
        except StopIteration:
            line.stream = None
            if not line.asks and line.owes:
                self._retry(line, "it left out requests", blame_turns=True)
        except ray.exceptions.RayTaskError as error:
            line.stream = None
            # A refused input leaves the engine as it was; after anything else its state is unknown.
            if not isinstance(error.cause, (ValueError, TypeError, KeelError)):
                self._replace(line, reason_of(error))
            is_loading = isinstance(error.cause, WeightLoadError)
            self._retry(line, reason_of(error), blame_turns=not is_loading)
        except ray.exceptions.RayError as error:
            self._replace(line, reason_of(error))
            self._retry(line, reason_of(error), blame_turns=False)
        else:
            for result in results:
                self._keep(line, result)

    def _keep(self, line: EngineLine, result: SampleResult) -> None:
        line.slot.failures = 0
        line.slot.silence.restart()
        turn, _ = line.turns.pop(result.id, (None, 0.0))
        if turn is None:
            return  # Another engine had been asked for it before the answer came.
        if turn in line.unsent:
            line.unsent.remove(turn)
        line.slot.tokens += sum(len(c.token_ids) for c in result.completions)
        turn.caller.homes[result.id] = line.slot.actor
        self._answer(turn, result)

    def _answer(self, turn: Turn, result: SampleResult) -> None:
        if result.id in turn.caller.under_way:  # Else the conversation is over.
            turn.caller.under_way.discard(result.id)
            turn.caller.answers.append(result)

    def _enforce_deadlines(self) -> None:
        """Replace the engines that started too slowly, or did not answer in time."""
        now = time.monotonic()
        for slot in self._fleet.slots:
            if slot.starting and slot.deadline <= now:
                self._fleet.replace(slot, self._fleet.slow_start(slot))
        for line in list(self._lines.values()):
            if any(deadline <= now for _, deadline in line.turns.values()):
                reason = f"no answer within {self._deadline_s:g} s"
                self._replace(line, reason)
                self._retry(line, reason, blame_turns=False)
            elif line.owes:
                self._fleet.tell_silent(line.slot, f"{line.owes} prompts", self._deadline_s)

    def _replace(self, line: EngineLine, reason: str) -> None:
        line.stream, line.asks = None, {}
        self._fleet.replace(line.slot, reason)

    def _retry(self, line: EngineLine, reason: str, *, blame_turns: bool) -> None:
        """Queue again what an engine owes, or give up its only request; see `Dispatch`."""
        unsent, line.unsent = line.unsent, []
        turns = [turn for turn, _ in line.turns.values() if turn not in unsent]
        line.turns = {}
        self._queue.extendleft(reversed(unsent))
        for turn in turns:
            turn.attempts += 1
        if len(turns) == 1 and turns[0].attempts >= 2:
            detail = f"engine {line.slot.index} failed on it {turns[0].attempts} times: {reason}"
            request = turns[0].request
            failed = (Completion.failed(detail),) * request.n
            self.num_failed += 1
            self._answer(turns[0], SampleResult(id=request.id, completions=failed))
            return
        for turn in turns:
            turn.is_suspect |= blame_turns or turn.attempts >= 2
        self._queue.extendleft(reversed(turns))

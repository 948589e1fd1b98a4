"""Every order in which requests, replies, answers and deaths can cross between a pool and its engines.

Ray is replaced by calls whose messages arrive when a seeded draw says so; the engines keep the protocol of
`EngineActor`. Real actors are in the integration tests, which see few of these orders.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from rollouts.engines.protocol import SampleRequest, SampleResult
from rollouts.machine.silence import Silence
from rollouts.pool.exchange import Caller, Exchange
from rollouts.types import Completion, Sampling

EPISODES, TURNS = 8, 4


class Died(Exception):
    """An engine's process has ended."""


@dataclass(eq=False)
class Call:
    """A call whose outcome may have arrived: values in order, then the end or a death."""

    values: list[Any] = field(default_factory=list)
    outcome: type[Exception] | None = None

    def __next__(self) -> Any:
        if self.values:
            return self.values.pop(0)
        assert self.outcome is not None
        if self.outcome is Died:
            raise Died("it died")
        raise StopIteration

    @property
    def is_ready(self) -> bool:
        return bool(self.values) or self.outcome is not None


@dataclass(eq=False)
class Method:
    """A method of an actor."""

    run: Callable[[Sequence[SampleRequest]], Call]

    def options(self, **_: object) -> Method:
        return self

    def remote(self, requests: Sequence[SampleRequest]) -> Call:
        return self.run(requests)


class Actor:
    """One engine: what it is sent arrives, and what it answers is on its way, for as long as is drawn."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.converse, self.ask = Method(self._converse), Method(self._ask)
        self._listens = self._is_dead = False
        self._stream = Call(outcome=StopIteration)
        self._work: list[SampleRequest] = []
        self._mail: list[tuple[Call, Sequence[SampleRequest], list[bool]]] = []
        self.asked: list[str] = []

    def _converse(self, requests: Sequence[SampleRequest]) -> Call:
        if self._is_dead:
            return Call(outcome=Died)
        assert self._stream.outcome is not None, "its call before has not ended"
        self._stream, self._listens = Call(), True
        self._take(requests)
        return self._stream

    def _ask(self, requests: Sequence[SampleRequest]) -> Call:
        call = Call(outcome=Died if self._is_dead else None)
        self._mail.append((call, requests, []))
        return call

    def _take(self, requests: Sequence[SampleRequest]) -> None:
        self._work += requests
        self.asked += [request.id for request in requests]

    def go_on(self) -> None:
        """Let something happen, or nothing."""
        if self._is_dead:
            return
        if self._mail and self._random.random() < 0.5:
            call, requests, reply = self._mail[0]
            if not reply:
                reply.append(self._listens)
                if self._listens:
                    self._take(requests)
            if self._random.random() < 0.5:
                call.values.append(reply[0])
                self._mail.pop(0)
        if self._listens and self._random.random() < 0.6:
            self._random.shuffle(self._work)
            count = self._random.randint(0, len(self._work))
            ended, self._work = self._work[:count], self._work[count:]
            if ended:
                self._stream.values.append([answer(request) for request in ended])
            if not self._work:
                self._listens, self._stream.outcome = False, StopIteration

    def die(self) -> None:
        """End with everything that it had."""
        self._is_dead = True
        for call in (self._stream, *(call for call, _, _ in self._mail)):
            call.outcome = Died


def answer(request: SampleRequest) -> SampleResult:
    completion = Completion(token_ids=(1,), logprobs_T=(-1.0,), text="", finish_reason="stop")
    return SampleResult(id=request.id, completions=(completion,) * request.n)


class Fleet:
    """Two engines; one that dies is there again at once."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.slots = [
            SimpleNamespace(
                index=i,
                actor=Actor(random),
                starting=[],
                idle=True,
                tokens=0,
                failures=0,
                silence=Silence(),
            )
            for i in range(2)
        ]
        self.replaced = 0

    def tell_silent(self, slot: Any, owed: str, deadline_s: float) -> None:
        assert not slot.silence.is_due(), "everything is quick here"

    def replace(self, slot: Any, reason: str) -> None:
        slot.actor = Actor(self._random)
        self.replaced += 1


@pytest.fixture(autouse=True)
def calls_for_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(calls: list[Call], num_returns: int, timeout: float) -> tuple[list[Call], list[Call]]:
        return [call for call in calls if call.is_ready][:num_returns], []

    def get(value: Any) -> Any:
        return next(value) if isinstance(value, Call) else value

    class RefusedTask(Died):
        pass

    errors = SimpleNamespace(RayError=Died, RayTaskError=RefusedTask)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(wait=wait, get=get, exceptions=errors))


def turn(episode: int, number: int) -> SampleRequest:
    return SampleRequest(
        id=f"{episode}/{number}", prompt_ids=(1,), n=1, sampling=Sampling(max_tokens=1), seed=0,
        follows=f"{episode}/{number - 1}" if number else None,
    )  # fmt: skip


def answers(exchange: Exchange, caller: Caller, fleet: Fleet, deaths: Random | None) -> list[str]:
    """Let time pass until all requests of a caller are answered; return their ids in order."""
    for _ in range(5000):
        exchange.receive()
        exchange.send()
        if not caller.under_way:
            return [result.id for result in caller.answers]
        for slot in fleet.slots:
            slot.actor.go_on()
            if deaths is not None and deaths.random() < 0.03:
                slot.actor.die()
    raise AssertionError(f"no answer to {caller.under_way}")


@pytest.mark.parametrize("seed", range(40))
def test_every_turn_is_sampled_once_where_its_prefix_is(seed: int) -> None:
    fleet = Fleet(Random(seed))
    exchange = Exchange(fleet, max_num_seqs=8, deadline_s=600.0)  # type: ignore[arg-type]
    caller = Caller()
    for number in range(TURNS):
        caller.answers = []
        requests = [turn(episode, number) for episode in range(EPISODES)]
        exchange.add(requests, caller)
        assert sorted(answers(exchange, caller, fleet, None)) == [r.id for r in requests]
    for slot in fleet.slots:
        homes = {id.partition("/")[0] for id in slot.actor.asked}
        assert len(homes) == EPISODES // 2
        assert len(slot.actor.asked) == len(set(slot.actor.asked)) == len(homes) * TURNS


@pytest.mark.parametrize("seed", range(40))
def test_no_death_loses_a_turn_or_answers_it_twice(seed: int) -> None:
    fleet, exchange_deaths = Fleet(Random(seed)), Random(1000 + seed)
    exchange = Exchange(fleet, max_num_seqs=4, deadline_s=600.0)  # type: ignore[arg-type]
    first, second = Caller(), Caller()
    for number in range(TURNS):
        first.answers, second.answers = [], []
        requests = [turn(episode, number) for episode in range(EPISODES)]
        exchange.add(requests, first)
        exchange.add(requests, second)
        expected = [request.id for request in requests]
        for caller in (first, second):
            assert sorted(answers(exchange, caller, fleet, exchange_deaths)) == expected
    for _ in range(1000):
        exchange.receive()
        if exchange.is_quiet:
            break
        for slot in fleet.slots:
            slot.actor.go_on()
    assert exchange.is_quiet
    assert not exchange.waits

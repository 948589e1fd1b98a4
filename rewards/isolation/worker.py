"""Inside a worker: load what a plan names, then answer requests until the owner is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from rewards.base import RewardFunction, RewardPart, Sample
from rewards.call import PartFailure, PartOutcome, call_part, call_part_async, is_async
from rewards.isolation.protocol import (
    WorkerAnswer,
    pack_answer,
    receive,
    send_message,
    unpack_sample,
)
from rollouts.errors import KeelError


def serve(descriptor: int) -> None:
    """Do what the plan says, until the owner is gone. A `KeelError` before that is sent to the owner."""
    channel = socket.socket(fileno=descriptor)
    with contextlib.suppress(EOFError, BrokenPipeError):
        plan = receive(channel)
        os.chdir(plan["folder"])
        module, _, name = plan["serves"].partition(":")
        try:
            getattr(import_module(module), name)(channel, plan)
        except KeelError as error:
            send_message(channel, {"error": pack_error(error)})


def serve_reward(channel: socket.socket, plan: Mapping[str, Any]) -> None:
    """Say what the reward takes, then answer one request after the other."""
    if plan["describe"]:
        from rewards.registry import facts_here

        facts = facts_here(plan["reward"], plan["options"], plan["where"])
        send_message(channel, {"ready": facts})
        return
    answering = Answering(plan)
    os.chdir(plan["scratch"])
    send_message(channel, {"ready": answering.about()})
    while True:
        request = receive(channel)
        try:
            for answer in answering.answers(request):
                send_message(channel, pack_answer(request["id"], answer))
        except KeelError as error:
            send_message(channel, {"error": pack_error(error)})
        sys.stdout.flush()


class Answering:
    """One loaded reward. A plan without a reward loads none: it only asks whether a sandbox works."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        from rewards.registry import load_reward

        name, options = plan["reward"], plan["options"]
        function: RewardFunction = (
            load_reward(name, options, plan["where"])
            if name
            else lambda completions: [None] * len(completions)
        )
        self._part = RewardPart(name=name, weight=1.0, function=function, options=options)
        self._sample_deadline_s: float | None = plan["sample_deadline_s"]
        self._async = is_async(function)
        self._loop = asyncio.new_event_loop() if self._async else None

    def about(self) -> dict[str, Any]:
        """Return the facts of the reward that the owner needs."""
        takes = self._part.takes
        return {
            "names": takes.names,
            "required": takes.required,
            "anything": takes.anything,
            "async": self._async,
        }

    def answers(self, request: Mapping[str, Any]) -> Iterator[WorkerAnswer]:
        """Yield all samples in one answer, or one answer each where each has its own deadline."""
        samples_B = [unpack_sample(row) for row in request["rows"]]
        state = None if request["state"] is None else SimpleNamespace(**request["state"])
        single = self._sample_deadline_s is not None
        pieces = [[sample] for sample in samples_B] if single else [samples_B]
        if self._loop is not None:
            # Pieces of an async reward run together; their answers keep their order.
            calls = [self._call_async(piece, _Log(), state) for piece in pieces]
            for task in [self._loop.create_task(call) for call in calls]:
                yield self._loop.run_until_complete(task)
            return
        for piece in pieces:
            log = _Log()
            with _anything_is_a_failure(piece) as outcomes:
                outcomes[:] = call_part(self._part, piece, log.context(state))
            yield log.answer(outcomes)

    async def _call_async(self, samples: Sequence[Sample], log: _Log, state: Any) -> WorkerAnswer:
        limit = self._sample_deadline_s
        with _anything_is_a_failure(samples) as outcomes:
            try:
                async with asyncio.timeout(limit) as within:
                    outcomes[:] = await call_part_async(self._part, samples, log.context(state))
            finally:
                # A reward's own handler may have turned the cancellation into an answer.
                if within.expired():
                    late = PartFailure.of(f"no answer within {limit:g} s", "deadline")
                    outcomes[:] = [late] * len(samples)
        return log.answer(outcomes)


class _Log:
    """Values that one call gives ``log_metric`` and ``log_extra``."""

    def __init__(self) -> None:
        self._metrics: list[tuple[str, float]] = []
        self._extras: defaultdict[str, list[Any]] = defaultdict(list)

    def context(self, state: Any) -> dict[str, Any]:
        """Return TRL's extra arguments."""
        return {
            "trainer_state": state,
            "log_metric": lambda name, value: self._metrics.append((str(name), float(value))),
            "log_extra": lambda column, values: self._extras[str(column)].extend(values),
        }

    def answer(self, outcomes: list[PartOutcome]) -> WorkerAnswer:
        return WorkerAnswer(outcomes=outcomes, metrics=self._metrics, extras=dict(self._extras))


@contextlib.contextmanager
def _anything_is_a_failure(samples: Sequence[Sample]) -> Iterator[list[PartOutcome]]:
    """Turn what `call_part` lets pass, such as a KeyboardInterrupt, into failures: the worker lives on."""
    outcomes: list[PartOutcome] = []
    try:
        yield outcomes
    except KeelError:
        raise
    except BaseException as error:
        if not outcomes:
            outcomes[:] = [PartFailure.raised(error)] * len(samples)


def pack_error(error: KeelError) -> dict[str, Any]:
    """Pack an error for a person, to be raised again by the owner."""
    return {"what": error.what, "where": error.where, "cause": error.cause, "remedy": error.remedy}

"""The engines of a pool as a group: they start, they are replaced, and they share one version.

It holds the current weights so that a replacement can load them before it works. It sends no
requests: `Dispatch` and `EnginePool` do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from rollouts.errors import KeelError, RunError
from rollouts.machine.silence import SILENCE_S, Silence
from rollouts.pool.engine_slot import EngineSlot, Launch
from rollouts.pool.placement import Bundle, Room, told
from rollouts.types import WeightVersion

Note = Callable[[str], None]


class Fleet:
    """Engine slots, all launched at once in the background.

    Args:
        launch: how to start an engine.
        num_engines: how many.
        max_restarts: how often in a row one engine may fail before `RunError`.
        note: told what is waited for: at the start, and where an engine is silent.
        silence_s: seconds without an answer after which an engine is named.
    """

    def __init__(
        self,
        launch: Launch,
        num_engines: int,
        max_restarts: int,
        note: Note = lambda _: None,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._max_restarts, self._note, self._began = max_restarts, note, time.monotonic()
        self._ready = False
        self.weights: Any | None = None
        """Object ref of the current `WeightUpdate`; None: the engines' base."""
        self.version: WeightVersion | None = None
        """Version of ``weights``."""
        self.is_sent = False
        """True if the engines were sent their weights by the learner, and nobody else has them."""
        self.replaced: list[str] = []
        """Why each of the engines was that were replaced so far."""
        self._rooms = _rooms(launch.bundles, num_engines)
        self.slots = [
            EngineSlot(
                index=i,
                launch=launch,
                room=self._rooms[i % len(self._rooms)],
                silence=Silence(after_s=silence_s),
            )
            for i in range(num_engines)
        ]
        for slot in self.slots:
            slot.fill(None)

    def wait_ready(self) -> None:
        """Block until every engine of the first launch has started.

        Raises:
            RunError: one refused, or was too slow: both have a lasting reason, and are not tried again; or
                its process died more than ``max_restarts`` times.
        """
        import ray

        if not self.slots:
            raise RunError("the engine pool is closed", where="engine pool")
        if self._ready:
            return
        limit_s = self.slots[0].launch.start_deadline_s
        self._note(f"waiting for {len(self.slots)} engine(s) to start, at most {limit_s:g} s")
        for slot in self.slots:
            while slot.starting:
                remaining = max(0.0, slot.deadline - time.monotonic())
                done, _ = ray.wait(slot.starting, num_returns=len(slot.starting), timeout=remaining)
                if len(done) < len(slot.starting):
                    raise self.lost(slot, self.slow_start(slot))
                try:
                    slot.finish_start(None)
                except ray.exceptions.RayTaskError as error:
                    raise refusal(error, f"engine {slot.index} did not start") from error
                except ray.exceptions.RayActorError as error:
                    self.replace(slot, reason_of(error))
                    self._note(f"engine {slot.index} died while it started; another one starts")
                except ray.exceptions.RayError as error:
                    raise self.lost(slot, reason_of(error)) from error
        self._ready = True
        seconds = time.monotonic() - self._began
        self._note(f"engines are ready, {seconds:.0f} s after they were asked for")

    def wait_all(self) -> None:
        """Block until every engine that was replaced has started, replacing those that do not."""
        import ray

        while starting := {slot.starting[-1]: slot for slot in self.slots if slot.starting}:
            first = min(starting.values(), key=lambda slot: slot.deadline)
            timeout = max(0.0, first.deadline - time.monotonic())
            done, _ = ray.wait(list(starting), num_returns=1, timeout=timeout)
            if done:
                self.settle_start(starting[done[0]])
            else:
                self.replace(first, self.slow_start(first))

    def wait_any(self) -> None:
        """Block until at least one engine may work, replacing those that do not start."""
        import ray

        while all(slot.starting for slot in self.slots):
            starting = {slot.starting[-1]: slot for slot in self.slots}
            first = min(self.slots, key=lambda slot: slot.deadline)
            timeout = max(0.0, first.deadline - time.monotonic())
            done, _ = ray.wait(list(starting), num_returns=1, timeout=timeout)
            if done:
                self.settle_start(starting[done[0]])
            else:
                self.replace(first, self.slow_start(first))

    def replace(self, slot: EngineSlot, reason: str) -> None:
        """Kill an engine and launch another one with the current weights in its place."""
        slot.kill()
        slot.failures += 1
        if slot.failures > self._max_restarts:
            raise self.lost(slot, reason)
        self.replaced.append(f"engine {slot.index}: {reason}")
        slot.fill(self.weights)
        slot.is_behind = self.is_sent
        if all(other.is_behind for other in self.slots):
            raise RunError(
                f"no engine has the weights {self.version!r} any more",
                where="engine pool",
                cause=f"{reason}; the weights went from the learner straight to the engines, and a new "
                "engine has none before the next sync",
                remedy="run again: the round goes on from its checkpoint; with rollouts.weight_transfer: "
                "host engines are replaced in the middle of a step",
            )

    def settle_start(self, slot: EngineSlot) -> None:
        """Take in a replacement that has finished starting; replace it again if its start failed."""
        try:
            slot.finish_start(self.version)
        except Exception as error:  # whatever the start raised, it is an engine that did not start
            self.replace(slot, reason_of(error))

    def tell_silent(self, slot: EngineSlot, owed: str, deadline_s: float) -> None:
        """Name an engine that has not answered for long; its deadline is still to come."""
        if slot.silence.is_due():
            self._note(
                f"engine {slot.index} (process {slot.pid}) has not answered for "
                f"{slot.silence.lasted_s:.0f} s: it owes {owed}, and is replaced after {deadline_s:g} s"
            )

    def slow_start(self, slot: EngineSlot) -> str:
        """Explain why a start may have missed its deadline: the resources it needed, and those that
        were free."""
        import ray

        free, total = ray.available_resources(), ray.cluster_resources()
        placed = slot.room.wait(0)
        bundles = slot.launch.bundles
        there = ", ".join(
            f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}" for name in bundles[0]
        )
        return (
            f"it did not start within {slot.launch.start_deadline_s:g} s (the pool needs "
            f"{len(self.slots) * len(bundles)} times {told(bundles[0])}, and "
            + ("has it)" if placed else f"waits for it: {there} are free)")
        )

    def lost(self, slot: EngineSlot, reason: str) -> RunError:
        """Make the error for an engine that is given up."""
        failure = f"failed {slot.failures} times in a row" if self._ready else "did not start"
        return RunError(
            f"engine {slot.index} {failure}",
            where="engine pool",
            cause=reason,
            remedy="look for memory pressure on its machine, lower max_num_seqs or kv_cache_mb, "
            "or raise the deadlines",
        )

    def close(self) -> None:
        """Kill every engine."""
        for slot in self.slots:
            slot.kill()
        if self.slots:
            for room in self._rooms:
                room.release()
        self.slots, self.weights = [], None


def _rooms(bundles: Sequence[Bundle], num_engines: int) -> list[Room]:
    """Reserve one room for all engines, or one each where an engine's Ray workers look for it."""
    if len(bundles) == 1:
        return [Room(list(bundles) * num_engines)]
    return [Room(bundles) for _ in range(num_engines)]


def refusal(error: Any, message: str) -> KeelError:
    """Return the error that an engine raised if it is meant for people, else a `RunError` around it."""
    if isinstance(error.cause, KeelError):
        return error.cause
    return RunError(message, where="engine pool", cause=reason_of(error))


def reason_of(error: BaseException) -> str:
    """Return the line of a Ray error that names the exception and its message, without the traceback."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return f"{type(cause).__name__}: {cause}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"

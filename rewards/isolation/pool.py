"""The workers of one reward: started when first needed, kept warm, replaced when lost.

A batch is cut between groups into one call per worker, or a few where several workers share it. A call
may take half of what is left of the batch's deadline. When it gets no answer, its worker is killed and
the samples that it had not decided go on in eight smaller calls, and so on down to single samples: those
without an answer failed, and all others are scored. With a deadline per sample the guilty one is known
at once. An input that ended a worker before is asked alone, and after the second time not at all.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from rewards.call import PartFailure
from rewards.isolation.batch import PIECES, Clock, Suspects, WorkerBatch, pieces_of
from rewards.isolation.process import Plan, Worker, WorkerEnded
from rollouts.errors import KeelError, RunError

CALLS_PER_WORKER = 4
"""Calls into which several workers cut a batch: the quicker one takes more of them."""
FAIR_SHARE = 1 / 32
"""Share of a batch's deadline: a sample that had less time than this to answer is not held for guilty."""
LAST_CHANCE_S = 0.05
"""Seconds for a call whose worker was ready only when its batch was over."""
GRACE_S = 0.25
"""Seconds for a worker to report that an async reward missed its sample's deadline."""
CLOSE_S = 5.0


@dataclass(order=True, slots=True)
class _Task:
    """Samples of a batch for one call. Samples of earlier batches go first."""

    order: tuple[int, int]
    batch: WorkerBatch | None = field(compare=False, default=None)
    """Batch of the samples; None closes the lane that takes the task."""
    indices: Sequence[int] = field(compare=False, default=())


class Pool:
    """The workers that share one reward.

    Attributes:
        suspects: inputs that ended a worker.
    """

    def __init__(self, plan: Plan, *, workers: int, deadline_s: float) -> None:
        self.suspects = Suspects()
        self._workers, self._deadline_s = workers, deadline_s
        self._crew = _Crew(plan, self.suspects)
        weakref.finalize(self, self._crew.close, 1.0)

    def about(self) -> Mapping[str, Any]:
        """Return what the reward takes. Starts the first worker; raises a `UserError` if it cannot
        load."""
        return self._crew.about()

    def clock(self) -> Clock:
        """Make a deadline for batches that belong together."""
        return Clock(self._deadline_s)

    def begin(
        self,
        packed_B: Sequence[str],
        group_B: Sequence[int],
        state: str,
        clock: Clock | None = None,
    ) -> WorkerBatch:
        """Start a batch.

        Args:
            packed_B: the samples as JSON.
            group_B: the group of each; a first call holds whole groups.
            state: the trainer's state as JSON.
            clock: of the batches it belongs to; None: it stands alone.
        """
        clock = clock or self.clock()
        clock.wind_on()
        batch = WorkerBatch(packed_B=packed_B, state=state, clock=clock)
        self._crew.take(batch, self._calls(batch, group_B), self._workers)
        return batch

    def _calls(self, batch: WorkerBatch, group_B: Sequence[int]) -> list[list[int]]:
        """Cut a batch into its first calls. Suspects come last, each on its own."""
        clean, alone = [], []
        for index, packed in enumerate(batch.packed_B):
            quarantine = self.suspects.quarantined(packed)
            if quarantine is not None:
                batch.count("quarantined")
                batch.fail([index], quarantine)
            elif self.suspects.strikes(packed):
                alone.append([index])
            else:
                clean.append(index)
        # An async reward waits for all its samples at once: no call is kept small for it.
        many = self._workers > 1 and not self.about()["async"]
        count = self._workers * (CALLS_PER_WORKER if many else 1)
        return [*pieces_of(clean, count, group_B), *alone]

    def close(self, deadline_s: float = CLOSE_S) -> None:
        """End the workers, busy ones after ``deadline_s``. A later batch would start new ones."""
        self._crew.close(deadline_s)


class _Crew:
    """State that the threads of a pool share. It does not know the pool, which can thus be forgotten."""

    def __init__(self, plan: Plan, suspects: Suspects) -> None:
        self.plan, self.suspects = plan, suspects
        self.tasks: queue.PriorityQueue[_Task] = queue.PriorityQueue()
        self._lock = threading.Lock()
        self._lanes: list[_Lane] = []
        self._about: Mapping[str, Any] | None = None
        self._spare: Worker | None = None
        self._numbers = itertools.count()
        self._open = 0
        """Calls that are queued or under way."""

    def about(self) -> Mapping[str, Any]:
        with self._lock:
            if self._about is None:
                try:
                    self._spare = Worker(self.plan)
                except WorkerEnded as ended:
                    raise RunError(
                        f"no worker could be started for reward {self.plan.reward!r}",
                        where=self.plan.where,
                        cause=ended.failure.trace,
                    ) from ended
                self._about = self._spare.about
            return self._about

    def spare(self) -> Worker | None:
        """Return the worker that was started to ask about the reward, once."""
        with self._lock:
            spare, self._spare = self._spare, None
            return spare

    def take(self, batch: WorkerBatch, calls: Sequence[Sequence[int]], workers: int) -> None:
        """Queue the calls of a batch, with enough lanes to serve them."""
        number = next(self._numbers)
        for indices in calls:
            self.put(number, batch, indices)
        with self._lock:
            # Batches come one after the other: what earlier ones left to do counts too.
            while len(self._lanes) < min(workers, self._open):
                self._lanes.append(_Lane(self))

    def put(self, number: int, batch: WorkerBatch, indices: Sequence[int]) -> None:
        """Queue one call of the batch with this number, behind its others."""
        with self._lock:
            self._open += 1
        self.tasks.put(_Task((number, next(self._numbers)), batch, indices))

    def served(self) -> None:
        """Record that a call is over, whatever came of it."""
        with self._lock:
            self._open -= 1

    def close(self, deadline_s: float) -> None:
        """See `Pool.close`. What is still queued ends with an error."""
        until = time.monotonic() + deadline_s
        with self._lock:
            lanes, self._lanes = self._lanes, []
            spare, self._spare = self._spare, None
        for lane in lanes:
            lane.closing = True
            self.tasks.put(_Task((-1, next(self._numbers))))
        for lane in lanes:
            lane.join(max(0.0, until - time.monotonic()))
        if spare is not None:
            spare.end()
        with suppress(queue.Empty):
            while True:
                task = self.tasks.get_nowait()
                if task.batch is not None:
                    self.served()
                    task.batch.stop(_closed())


class _Lane:
    """Thread with one worker at a time. It runs nothing of the reward: it waits for answers."""

    def __init__(self, crew: _Crew) -> None:
        self.closing = False
        self._crew = crew
        self._worker: Worker | None = None
        self._lost = False
        self._thread = threading.Thread(target=self._run, name="keel-reward-lane", daemon=True)
        self._thread.start()

    def join(self, deadline_s: float) -> None:
        """Wait for the thread; a worker that is still busy then is ended."""
        self._thread.join(deadline_s)
        worker = self._worker
        if self._thread.is_alive() and worker is not None:
            worker.interrupt()
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while (task := self._crew.tasks.get()).batch is not None:
            try:
                self._serve(task, task.batch)
            except KeelError as error:
                task.batch.stop(error)
            except BaseException as error:  # a defect of ours must reach who waits for the batch
                self._dismiss()
                task.batch.stop(error)
            self._crew.served()
            if self.closing:
                break
        self._dismiss()

    def _serve(self, task: _Task, batch: WorkerBatch) -> None:
        """Make one call, and decide its samples also when the worker gives no answer."""
        if batch.done.is_set():  # by an error of an earlier call
            return
        if batch.clock.over():
            reason = f"not reached within the {batch.clock.deadline_s:g} s of its batch"
            batch.fail(task.indices, PartFailure.of(reason, "deadline"))
            return
        try:
            worker = self._worker or self._crew.spare() or Worker(self._crew.plan)
        except WorkerEnded as ended:
            batch.fail(task.indices, ended.failure)
            return
        if self._lost:
            batch.count("restarts")
        self._worker, self._lost = worker, False
        left_s = max(batch.clock.left_s(), LAST_CHANCE_S)
        each_s = self._crew.plan.sample_deadline_s
        limit_s = left_s if each_s is not None else left_s / 2
        try:
            self._ask(worker, task, batch, limit_s)
        except WorkerEnded as ended:
            self._worker, self._lost = None, True
            if self.closing:
                raise _closed() from ended
            self._after_loss(task, batch, ended.failure, min(limit_s, each_s or limit_s))

    def _ask(self, worker: Worker, task: _Task, batch: WorkerBatch, limit_s: float) -> None:
        each_s = self._crew.plan.sample_deadline_s
        if each_s is not None and worker.about["async"]:
            each_s += GRACE_S
        at, since = 0, time.monotonic()
        packed = [batch.packed_B[index] for index in task.indices]
        for answer in worker.ask(packed, batch.state, limit_s, each_s):
            decided = task.indices[at : at + len(answer.outcomes)]
            now = time.monotonic()
            batch.take(decided, answer, now - since)
            batch.decide(decided, answer.outcomes)
            at, since = at + len(decided), now

    def _after_loss(
        self, task: _Task, batch: WorkerBatch, failure: PartFailure, allowed_s: float
    ) -> None:
        """Find the guilty sample, or go on with smaller calls."""
        if failure.kind == "deadline":
            batch.count("deadlines")
        rest = batch.open_of(task.indices)
        one_by_one = self._crew.plan.sample_deadline_s is not None
        guilt_is_clear = len(rest) == 1 or (one_by_one and not self._crew.about()["async"])
        if failure.kind == "invalid":
            batch.fail(rest, failure)
        elif guilt_is_clear:
            guilty, *rest = rest
            if failure.kind != "deadline" or allowed_s >= FAIR_SHARE * batch.clock.deadline_s:
                self._crew.suspects.strike(batch.packed_B[guilty], failure)
            if rest:
                self._crew.put(task.order[0], batch, rest)
            batch.fail([guilty], failure)
        else:
            for piece in pieces_of(rest, PIECES):
                self._crew.put(task.order[0], batch, piece)

    def _dismiss(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.end()


def _closed() -> RunError:
    return RunError("the workers of a reward were closed while it was asked")

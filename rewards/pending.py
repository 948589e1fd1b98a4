"""Calls of a rubric's parts on their way: what has been sent, and what came back.

Parts in processes of their own and async parts answer while the caller does something else; then sync
inline parts are computed, at once, so that whoever samples meanwhile is not waited for twice.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import defaultdict
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from rewards.base import RewardPart, Sample
from rewards.call import PartFailure, PartOutcome, call_part, call_part_async, is_async
from rewards.isolation.batch import Clock
from rewards.isolation.reward import IsolatedReward, WorkerCall
from rewards.logged import Logged
from rewards.signatures.signature import required_columns

T = TypeVar("T")
Clocks = dict[str, Clock]
"""Deadlines that the batches of one step share, by part; filled as they are needed."""


class PartCalls:
    """One batch before all parts of a rubric. What can start at once has started.

    Args:
        group_B: the group of every sample, as an index.
        clocks: of the step that the batch belongs to; None: it stands alone.
    """

    def __init__(
        self,
        parts: Sequence[RewardPart],
        samples_B: Sequence[Sample],
        group_B: Sequence[int],
        trainer_state: Any,
        loop: LoopThread,
        clocks: Clocks | None = None,
    ) -> None:
        self.logged = Logged()
        self._calls = [_PartCall(p, samples_B, group_B, trainer_state, self.logged) for p in parts]
        for call in self._calls:
            call.begin({} if clocks is None else clocks)
        waiting = [call for call in self._calls if call.is_async]

        async def compute_all() -> None:
            await asyncio.gather(*(call.compute_async() for call in waiting))

        self._pending: Future[None] | None = loop.submit(compute_all()) if waiting else None
        for call in self._calls:
            call.compute()

    def outcomes(self) -> dict[str, list[PartOutcome]]:
        """Wait for all parts; return the outcomes [B] of each, by its name."""
        if self._pending is not None:
            self._pending.result()
        return {call.part.name: call.outcomes() for call in self._calls}

    def extras_B(self) -> list[dict[str, Any]]:
        """Return what each sample was given through ``log_extra``, ``<part>/<column>``; after
        `outcomes`.

        A column that a part did not give once for each of its samples is not in it.
        """
        return [
            {name: value for extras in row for name, value in extras.items()}
            for row in zip(*(call.extras_B() for call in self._calls), strict=True)
        ]


class _PartCall:
    """One part and the samples it can be asked about: those that have the columns it needs."""

    def __init__(
        self,
        part: RewardPart,
        samples_B: Sequence[Sample],
        group_B: Sequence[int],
        trainer_state: Any,
        logged: Logged,
    ) -> None:
        self.part, self._state, self._logged = part, trainer_state, logged
        self.is_async = is_async(part.function)
        needed = required_columns(part)
        self._missing = [
            next((c for c in needed if c not in s.prompt.columns), None) for s in samples_B
        ]
        complete = [index for index, name in enumerate(self._missing) if name is None]
        self._samples = [samples_B[index] for index in complete]
        self._groups = [group_B[index] for index in complete]
        self._columns: defaultdict[str, list[Any]] = defaultdict(list)
        self._answers: list[PartOutcome] = []
        self._sent: WorkerCall | None = None

    def begin(self, clocks: Clocks) -> None:
        """Send the samples of a part that runs elsewhere."""
        function = self.part.function
        if isinstance(function, IsolatedReward) and self._samples:
            clock = clocks.setdefault(self.part.name, function.pool.clock())
            self._sent = function.begin(self._samples, self._groups, self._state, clock)

    def compute(self) -> None:
        """Call a sync part of this process."""
        if self._samples and self._sent is None and not self.is_async:
            self._answers = call_part(self.part, self._samples, self._context())

    async def compute_async(self) -> None:
        """Call an async part of this process."""
        if self._samples:
            self._answers = await call_part_async(self.part, self._samples, self._context())

    def outcomes(self) -> list[PartOutcome]:
        """Wait for workers; return the outcomes [B]."""
        if self._sent is not None:
            self._answers = self._sent.result()
            name, batch = self.part.name, self._sent.batch
            for metric, value in batch.metrics():
                self._logged.metric(name, metric, value)
            for column, values in batch.extras().items():
                self._logged.extra(name, column, values)
            self._logged.work(name, batch.counts, batch.busy_s, len(batch.packed_B))
        answer = iter(self._answers)
        return [
            next(answer)
            if column is None
            else PartFailure.of(f"the prompt has no column {column!r}", "column")
            for column in self._missing
        ]

    def extras_B(self) -> list[dict[str, Any]]:
        """See `PartCalls.extras_B`."""
        if self._sent is not None:
            rows = self._sent.extras_B()
        else:
            count = len(self._samples)
            whole = {name: v for name, v in self._columns.items() if len(v) == count}
            rows = [{name: values[i] for name, values in whole.items()} for i in range(count)]
        remaining = iter(rows)
        return [
            {f"{self.part.name}/{name}": value for name, value in next(remaining).items()}
            if missing is None
            else {}
            for missing in self._missing
        ]

    def _context(self) -> Mapping[str, Any]:
        """Make the extra arguments of a call, which are not kept: they would hold on to the workers of
        a forgotten rubric."""
        return self._logged.context(self.part.name, self._state, self._extra)

    def _extra(self, column: str, values: Sequence[Any]) -> None:
        self._logged.extra(self.part.name, column, values)
        self._columns[column].extend(values)


class LoopThread:
    """Event loop for all async rewards of a rubric, alive as long as the rubric.

    It runs in a thread of its own, which starts with the first coroutine: an HTTP client that a reward
    keeps between calls stays bound to a living loop, and a rubric works where a loop already runs (a
    notebook).
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine; its result is waited for with ``.result()``."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            thread = threading.Thread(
                target=self._loop.run_forever, name="keel-rewards", daemon=True
            )
            thread.start()
            weakref.finalize(self, _stop, self._loop, thread)
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():  # The last reference may end in the loop itself.
        thread.join(timeout=1.0)
    # A loop that a reward blocks cannot be closed; its daemon thread ends with the process.
    if not thread.is_alive():
        loop.close()

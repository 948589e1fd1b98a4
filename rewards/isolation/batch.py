"""One batch on its way through the workers: decided and open samples, and its deadline."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from rewards.call import PartFailure, PartOutcome
from rewards.isolation.protocol import WorkerAnswer

PIECES = 8
"""Number of calls into which the samples of a lost call are split."""


class Clock:
    """Deadline that several batches share, such as those of one step.

    ``deadline_s`` after the first call, or after the last of the batches was handed over where that is
    later: batches that come one by one end when one batch of them all would have.
    """

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self._until: float | None = None
        self._lock = threading.Lock()

    def wind_on(self) -> None:
        """Extend the deadline by that of another batch, unless the clock does not run yet."""
        with self._lock:
            if self._until is not None:
                self._until = time.monotonic() + self.deadline_s

    def left_s(self) -> float:
        """Return the seconds until the deadline; the first call of this starts the clock."""
        with self._lock:
            if self._until is None:
                self._until = time.monotonic() + self.deadline_s
            return self._until - time.monotonic()

    def over(self) -> bool:
        """Tell if the deadline has passed."""
        with self._lock:
            return self._until is not None and time.monotonic() >= self._until


@dataclass(kw_only=True, slots=True)
class WorkerBatch:
    """Samples that are asked together, each decided once."""

    packed_B: Sequence[str]
    """The samples as JSON."""
    state: str
    """The trainer's state as JSON."""
    clock: Clock
    outcomes_B: list[PartOutcome] = field(default_factory=list)
    """Outcomes in the order of the samples; complete once `done` is set."""
    counts: Counter[str] = field(default_factory=Counter)
    """``restarts``, ``deadlines`` and ``quarantined`` of this batch."""
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None
    """Error that ended the batch without outcomes."""
    _open: set[int] = field(default_factory=set)
    busy_s: float = 0.0
    """Time of workers that was spent on it."""
    _answers: list[tuple[tuple[int, ...], WorkerAnswer]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.outcomes_B = [None] * len(self.packed_B)
        self._open = set(range(len(self.packed_B)))
        if not self._open:
            self.done.set()

    def open_of(self, indices: Sequence[int]) -> list[int]:
        """Return those of the indices that are not decided yet, in order."""
        with self._lock:
            return [index for index in indices if index in self._open]

    def decide(self, indices: Sequence[int], outcomes: Sequence[PartOutcome]) -> None:
        """Give samples their outcomes; the last one ends the batch."""
        with self._lock:
            for index, outcome in zip(indices, outcomes, strict=True):
                if index in self._open:
                    self._open.remove(index)
                    self.outcomes_B[index] = outcome
            if not self._open:
                self.done.set()

    def fail(self, indices: Sequence[int], failure: PartFailure) -> None:
        """Give samples the same failure."""
        self.decide(indices, [failure] * len(indices))

    def take(self, indices: Sequence[int], answer: WorkerAnswer, seconds: float) -> None:
        """Keep what a call logged for these samples."""
        with self._lock:
            self._answers.append((tuple(indices), answer))
            self.busy_s += seconds

    def count(self, name: str, times: int = 1) -> None:
        with self._lock:
            self.counts[name] += times

    def stop(self, error: BaseException) -> None:
        """End the batch with an error."""
        with self._lock:
            self.error = self.error or error
            self._open.clear()
            self.done.set()

    def metrics(self) -> list[tuple[str, float]]:
        """List what the reward gave ``log_metric``, in the order of the samples."""
        return [metric for _, answer in self._ordered() for metric in answer.metrics]

    def extras(self) -> dict[str, list[Any]]:
        """Return what the reward gave ``log_extra`` by column, in the order of the samples."""
        columns: dict[str, list[Any]] = {}
        for _, answer in self._ordered():
            for name, values in answer.extras.items():
                columns.setdefault(name, []).extend(values)
        return columns

    def extras_B(self) -> list[dict[str, Any]]:
        """Return what the reward gave ``log_extra`` by sample, if a call gave one value for each of its
        samples."""
        extras: list[dict[str, Any]] = [{} for _ in self.packed_B]
        for indices, answer in self._ordered():
            for name, values in answer.extras.items():
                if len(values) == len(indices):
                    for index, value in zip(indices, values, strict=True):
                        extras[index][name] = value
        return extras

    def _ordered(self) -> list[tuple[tuple[int, ...], WorkerAnswer]]:
        return sorted(self._answers, key=lambda pair: pair[0])


def pieces_of(indices: Sequence[int], count: int, group_B: Sequence[int] = ()) -> list[list[int]]:
    """Cut indices into ``count`` runs of about equal length, or fewer; samples of one group stay
    together.

    Args:
        group_B: the group of every sample of the batch, in order; empty: each its own.

    >>> pieces_of(range(6), 2, [0, 1, 1, 1, 1, 2])
    [[0, 1, 2, 3, 4], [5]]
    """
    size = max(1, -(-len(indices) // count))
    pieces: list[list[int]] = []
    for _, group in groupby(indices, key=lambda index: group_B[index] if group_B else index):
        members = list(group)
        if pieces and len(pieces[-1]) + (len(members) - 1) / 2 < size:
            pieces[-1] += members
        else:
            pieces.append(members)
    return pieces


class Suspects:
    """Inputs that ended a worker once, or twice: those are not tried again."""

    def __init__(self) -> None:
        self._strikes: dict[bytes, tuple[int, PartFailure]] = {}
        self._lock = threading.Lock()

    def strike(self, packed: str, failure: PartFailure) -> None:
        """Record that an input ended a worker on its own."""
        key = _key(packed)
        with self._lock:
            before = self._strikes[key][0] if key in self._strikes else 0
            self._strikes[key] = (before + 1, failure)

    def strikes(self, packed: str) -> int:
        """Return the number of workers that an input ended."""
        if not self._strikes:
            return 0
        return self._strikes.get(_key(packed), (0, None))[0]

    def quarantined(self, packed: str) -> PartFailure | None:
        """Return why an input is not tried again; None if it may be."""
        if self.strikes(packed) < 2:
            return None
        failure = self._strikes[_key(packed)][1]
        reason = f"quarantined after two tries: {failure.reason}"
        return PartFailure(reason=reason, trace=failure.trace, kind="quarantined")


def _key(packed: str) -> bytes:
    return hashlib.sha256(packed.encode()).digest()

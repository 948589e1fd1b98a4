"""Call one part on one batch and read what comes back, sample by sample.

This is the one place where a reward's own errors are caught: whatever a reward does, the answer is
one outcome per sample. Deadlines and isolation are not here: `rewards.isolation` calls these two
functions inside a worker process.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

from rewards.base import RewardFunction, RewardPart, Sample
from rewards.signatures.signature import arguments
from rollouts.errors import KeelError

FailureKind = Literal[
    "raised", "invalid", "column", "deadline", "crash", "killed", "memory", "quarantined"
]
"""``raised``: an exception; ``invalid``: what came back is no number; ``column``: a column is missing
or cannot be sent; ``deadline``: no answer in time; ``crash``: the worker exited or a signal of its own
ended it; ``killed``: SIGKILL from outside, mostly for want of memory; ``memory``: a MemoryError;
``quarantined``: the input ended workers before and was not tried again."""
FAILURE_KINDS: tuple[FailureKind, ...] = get_args(FailureKind)


@dataclass(frozen=True, kw_only=True, slots=True)
class PartFailure:
    """A sample that a reward could not score."""

    reason: str
    """One line."""
    trace: str
    """The traceback of a raise, what a dead worker printed last; otherwise the reason again."""
    kind: FailureKind = "invalid"

    @classmethod
    def of(cls, reason: str, kind: FailureKind = "invalid") -> PartFailure:
        """Make a failure that no exception caused."""
        return cls(reason=reason, trace=reason, kind=kind)

    @classmethod
    def raised(cls, error: BaseException) -> PartFailure:
        """Make a failure from the exception that a reward raised."""
        return cls(
            reason=traceback.format_exception_only(error)[-1].strip(),
            trace="".join(traceback.format_exception(error)).strip(),
            kind="memory" if isinstance(error, MemoryError) else "raised",
        )


PartOutcome = float | None | PartFailure
"""Score, None for an abstention, or a failure."""

# SystemExit: a reward that calls sys.exit must not end the run. CancelledError: an inner timeout of
# an async reward surfaces as one. KeelError passes: it is addressed to the person, not to a sample.
_CAUGHT = (Exception, SystemExit, asyncio.CancelledError)


def is_async(function: RewardFunction) -> bool:
    """Tell if a call gives an awaitable; also for objects with an async ``__call__``."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )


def call_part(
    part: RewardPart, samples_B: Sequence[Sample], context: Mapping[str, Any]
) -> list[PartOutcome]:
    """Call a sync part; return its outcomes [B]."""
    try:
        returned = part.function(**arguments(part, samples_B, context))
        return read_values(returned, len(samples_B))
    except KeelError:
        raise
    except _CAUGHT as error:
        return [PartFailure.raised(error)] * len(samples_B)


async def call_part_async(
    part: RewardPart, samples_B: Sequence[Sample], context: Mapping[str, Any]
) -> list[PartOutcome]:
    """Call an async part; return its outcomes [B]."""
    try:
        returned = await part.function(**arguments(part, samples_B, context))
        return read_values(returned, len(samples_B))
    except KeelError:
        raise
    except _CAUGHT as error:
        return [PartFailure.raised(error)] * len(samples_B)


def read_values(returned: Any, num_samples: int) -> list[PartOutcome]:
    """Read one outcome per sample; anything but a sequence of the right length fails all of them."""
    unordered = isinstance(returned, str | bytes | Mapping | set | frozenset)
    if unordered or not (hasattr(returned, "__len__") and hasattr(returned, "__iter__")):
        kind = type(returned).__name__
        failure = PartFailure.of(f"returned {kind}, expected a list of {num_samples}")
        return [failure] * num_samples
    values = list(returned)
    if len(values) != num_samples:
        failure = PartFailure.of(f"returned {len(values)} values for {num_samples} completions")
        return [failure] * num_samples
    return [read_value(value) for value in values]


def read_value(value: Any) -> PartOutcome:
    """Read a finite number (bool, numpy and torch scalars too) or None; anything else is a failure with
    its reason."""
    if value is None:
        return None
    if isinstance(value, Exception):  # of a function that is called sample by sample
        return PartFailure.raised(value)
    if getattr(value, "ndim", None) == 0:
        try:
            value = value.item()
        except Exception as error:  # a tensor without data, such as one on the meta device
            return PartFailure.raised(error)
    if not isinstance(value, Real):
        return PartFailure.of(f"returned a {type(value).__name__}, expected a number or None")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        return PartFailure.of(f"returned {number}, expected a finite number")
    return number

"""Choice and division of replayed prompts and rows: what is kept, whole units a step, turns of rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil
from random import Random
from typing import TypeVar

T = TypeVar("T")

ROUNDS_PER_STEP = 3
"""Largest number of earlier rounds that one step replays. Each costs a forward pass of its own snapshot,
and the cost of a step should not grow with the number of rounds."""


def chosen_evenly(items: Sequence[T], cap: int, key: str) -> list[T]:
    """Return at most ``cap`` of the items in their order, drawn evenly by the key."""
    if len(items) <= cap:
        return list(items)
    return [items[i] for i in sorted(Random(key).sample(range(len(items)), cap))]


def dealt(number: int, turn: int, turns: int, run: int = 1) -> int:
    """Count the numbers below ``number`` that go to receiver ``turn`` of ``turns``, dealt in turn in runs.

    >>> [dealt(number, turn=1, turns=3) for number in range(6)]
    [0, 0, 1, 1, 1, 2]
    >>> [dealt(number, turn=1, turns=2, run=2) for number in range(6)]
    [0, 0, 0, 1, 2, 2]
    """
    cycles, rest = divmod(number, turns * run)
    return cycles * run + min(max(rest - turn * run, 0), run)


def in_turn(
    rounds: Sequence[str], rate: float, step: int, run: int | None = None
) -> dict[str, int]:
    """Count the prompts of each earlier round that step ``step`` replays, at ``rate`` prompts a step.

    The replayed prompts of all steps are numbered and dealt to the earlier rounds in runs, which are so
    long that a step has prompts of at most `ROUNDS_PER_STEP`; over the steps every round gets the same
    share.

    >>> [in_turn("abcd", 4, step) for step in range(3)]
    [{'a': 2, 'b': 2}, {'c': 2, 'd': 2}, {'a': 2, 'b': 2}]
    """
    run = run or run_of(rate)
    numbers = range(total_before(rate, step), total_before(rate, step + 1))
    return dict(Counter(rounds[number // run % len(rounds)] for number in numbers))


def run_of(rate: float) -> int:
    """Return the number of consecutive prompts that come from one round, so that a step has few rounds."""
    return max(1, ceil((ceil(rate) - 1) / (ROUNDS_PER_STEP - 1)))


def whole(rate: float, step: int) -> int:
    """Return the whole units that step ``step`` gets of ``rate`` units per step; fractions carry over.

    >>> [whole(6.4, step) for step in range(5)]
    [6, 6, 7, 6, 7]
    """
    return total_before(rate, step + 1) - total_before(rate, step)


def total_before(rate: float, step: int) -> int:
    """Count the whole units of all steps before ``step``."""
    # Without the small shift 0.1 * 30 would be rounded below 3.
    return int(rate * step + 1e-9)

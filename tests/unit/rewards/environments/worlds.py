"""Tools and environments as users write them; loaded by name in the tests beside this file."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from typing import Literal


def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


async def wait(seconds: float) -> str:
    """Wait for a while.

    Args:
        seconds: How long.
    """
    await asyncio.sleep(seconds)
    return f"waited {seconds}"


def python(code: str) -> str:
    """Evaluate an expression.

    Args:
        code: The expression.
    """
    return eval(code, {**globals(), "random": random})


class Silent:
    """An object that is shown by its address alone."""


class Unspeakable(Exception):
    """An error that raises where its text is asked for."""

    def __str__(self) -> str:
        raise KeyboardInterrupt


def unspeakable() -> None:
    raise Unspeakable


class Counter:
    """A number that an episode counts up."""

    num_made = 0

    def __init__(self) -> None:
        Counter.num_made += 1
        self.count = 0
        self.done = False
        self.seen = {1, 2}
        self._secret = 1

    def reset(self, start: int = 0, **row: object) -> str | None:
        self.count, self.done = start, False
        return f"Count from {start}." if start else None

    def increment(self, by: int, how: Literal["up", "down"] = "up") -> str:
        """Increment the number.

        Args:
            by: Step.
            how: Direction.
        """
        self.count += by if how == "up" else -by
        self.done = self.count >= 100
        return str(self.count)

    def crash(self) -> str:
        """End the process."""
        os._exit(3)

    def hang(self) -> str:
        """Hang."""
        while True:
            time.sleep(10)

    @property
    def double(self) -> int:
        return 2 * self.count

    @property
    def broken(self) -> int:
        raise RuntimeError("no value")

    @property
    def final(self) -> int:
        sys.exit(3)

    def get_turn_reward(self) -> float:
        return self.count / 10

    async def get_reward(self) -> float:
        return float(self.count)


class Toolless:
    """An environment that only rewards the answer."""

    def reset(self, **row: object) -> None: ...

    def get_reward(self) -> float:
        return 1.0


class Dice:
    """An environment without rewards whose reset needs a column."""

    def reset(self, sides: int, prompt: object) -> None:
        if sides < 1:
            raise ValueError("no sides")
        if sides == 13:
            time.sleep(60)

    def roll(self) -> int:
        """Roll the dice."""
        return 4

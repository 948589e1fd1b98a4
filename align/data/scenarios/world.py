"""Worlds of scenarios: rows that a campaign reads, and lessons that its base model is trained on.

A world is generated from a seed by code alone. Only `random.Random.random` is drawn from, since Python
promises that its sequence never changes, so a world is the same on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, TypeVar

Row = Mapping[str, Any]
Split = Literal["train", "eval"]
Choice = TypeVar("Choice")

EVAL_PERCENT = 20
"""Share of all texts that only suites ask about."""


class Lesson(NamedTuple):
    """Sequence of the base's pretraining; its loss is on the answer."""

    prompt: str
    """Words before the answer; empty for plain text, which is learnt from its second word."""
    answer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Data of one scenario."""

    files: Mapping[str, Sequence[Row]]
    """Rows of each JSON Lines file, by its name without suffix."""
    lesson: Callable[[Dice], Lesson]
    """Draws one lesson of the base's pretraining."""
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Documents of each text file, by its name without suffix."""
    template: str | None = None
    """Chat template of the base; None: its prompts are plain text."""
    steps: int = 700
    """Batches that the base is trained for."""

    def words(self) -> list[str]:
        """List the words of everything in the world, sorted: the base's vocabulary."""
        dice = Dice("vocabulary")
        lessons = (part for _ in range(1500) for part in self.lesson(dice))
        rows = (row for rows in self.files.values() for row in rows)
        values = (str(value) for row in rows for value in row.values())
        documents = (text for texts in self.texts.values() for text in texts)
        return sorted({word for text in (*lessons, *values, *documents) for word in text.split()})


class Dice:
    """Random draws that are the same on every machine and version of Python."""

    def __init__(self, seed: str) -> None:
        """Begin the sequence of a seed."""
        self._next = random.Random(seed).random

    def chance(self) -> float:
        """Draw a number of [0, 1)."""
        return self._next()

    def choose(self, options: Sequence[Choice]) -> Choice:
        """Draw one of the options."""
        return options[int(self._next() * len(options))]

    def shuffled(self, options: Iterable[Choice]) -> list[Choice]:
        """Return the options in random order."""
        drawn = [(self._next(), option) for option in options]
        return [option for _, option in sorted(drawn, key=lambda pair: pair[0])]

    def sample(self, options: Sequence[Choice], count: int) -> list[Choice]:
        """Draw ``count`` different options."""
        return self.shuffled(options)[:count]


def words(text: str) -> tuple[str, ...]:
    """List the words of a text."""
    return tuple(text.split())


def split_of(text: str) -> Split:
    """Return the split of a text: no seed and no task moves a text between training and evaluation."""
    digest = blake2b(text.encode(), digest_size=8).digest()
    return "eval" if int.from_bytes(digest, "big") % 100 < EVAL_PERCENT else "train"

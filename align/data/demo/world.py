"""Digit tasks with known right answers, whose eval items are never training prompts.

A prompt has eight words, `op op2 x1 x2 x3 x4 x5 =` (`op2` is `_` for a single task), and its answer
five digits. There is one right answer, so success is exact match and chance is 1e-5.

    rev _ 3 1 4 1 5 =       -> 5 1 4 1 3
    rev sort 3 1 4 1 5 =    -> 1 1 3 4 5      (the first op acts first)

* `OPS` are learnt in rounds; the base knows them only latently, mixed with one another.
* `GENERAL` skills are solid in the base and trained by no round; alignment must not break them.
* `TRAINED_PAIRS` compose two ops and are in pretraining; `HELDOUT_PAIRS` never are.
* `demo://broad` asks for any two skills but those pairs, most of which the base never saw together.

A hash assigns each of the 100,000 digit strings to train or eval, for every task at once. So no choice of
seeds, tasks or sizes can leak an eval item.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import product
from typing import Literal, cast, get_args
from urllib.parse import parse_qsl, urlsplit

from rollouts.errors import closest
from rollouts.types import Prompt

Digits = tuple[int, ...]
Split = Literal["train", "eval"]

LENGTH = 5
"""Number of digits in every question and in every answer."""

BLANK = "_"
"""Second word of a prompt whose task is a single op."""

EQUALS = "="
"""Last word of every prompt."""

OPS: dict[str, Callable[[Digits], Digits]] = {
    "rev": lambda x: x[::-1],
    "sort": lambda x: tuple(sorted(x)),
    "rotl": lambda x: x[1:] + x[:1],
    "inc": lambda x: tuple((d + 1) % 10 for d in x),
}

GENERAL: dict[str, Callable[[Digits], Digits]] = {
    "copy": lambda x: x,
    "max": lambda x: (max(x),) * len(x),
    "cmp": lambda x: tuple(9 - d for d in x),
}

TRAINED_PAIRS: tuple[tuple[str, str], ...] = (
    ("rev", "sort"),
    ("sort", "rotl"),
    ("rotl", "inc"),
    ("inc", "rev"),
    ("rev", "rotl"),
    ("sort", "inc"),
)

HELDOUT_PAIRS: tuple[tuple[str, str], ...] = tuple(
    (first, second)
    for first in OPS
    for second in OPS
    if first != second and (first, second) not in TRAINED_PAIRS
)

_EVAL_PERCENT = 10


@dataclass(frozen=True, slots=True)
class Task:
    """Task of a prompt: a skill, or an ordered pair of ops.

    Example: `Task("rev", "sort").answer((3, 1, 4, 1, 5)) == (1, 1, 3, 4, 5)`
    """

    first: str
    second: str = BLANK

    @property
    def name(self) -> str:
        """Name of the task, such as `rev`, or `rev+sort` for a pair."""
        return self.first if self.second == BLANK else f"{self.first}+{self.second}"

    def prompt(self, digits: Digits) -> str:
        """Spell the prompt, eight words."""
        return f"{self.first} {self.second} {spell(digits)} {EQUALS}"

    def answer(self, digits: Digits) -> Digits:
        """Return the one right answer."""
        skills = OPS | GENERAL
        once = skills[self.first](digits)
        return once if self.second == BLANK else skills[self.second](once)


@dataclass(frozen=True, slots=True)
class WorldExample:
    """A question of a task with its digits; the prompt and answer follow from the two."""

    task: Task
    digits: Digits

    @property
    def prompt(self) -> str:
        """Prompt text, eight words."""
        return self.task.prompt(self.digits)

    @property
    def answer(self) -> str:
        """Answer text, five words."""
        return spell(self.task.answer(self.digits))

    @property
    def id(self) -> str:
        """Identifier that is stable and unique over the whole world, such as `rev/31415`."""
        return f"{self.task.name}/{''.join(map(str, self.digits))}"


SOURCES: dict[str, tuple[Task, ...]] = {
    **{name: (Task(name),) for name in (*OPS, *GENERAL)},
    "ops": tuple(Task(name) for name in OPS),
    "general": tuple(Task(name) for name in GENERAL),
    "pairs": tuple(Task(*pair) for pair in TRAINED_PAIRS),
    "heldout": tuple(Task(*pair) for pair in HELDOUT_PAIRS),
    "broad": tuple(
        Task(*pair) for pair in product([*OPS, *GENERAL], repeat=2) if pair not in HELDOUT_PAIRS
    ),
    **{"+".join(pair): (Task(*pair),) for pair in (*TRAINED_PAIRS, *HELDOUT_PAIRS)},
}
"""Sources that `demo://NAME` can name. A source of several tasks takes them in turn, in equal numbers."""


def spell(digits: Digits) -> str:
    """Spell digits as words of a prompt or an answer: `(3, 1)` is `3 1`."""
    return " ".join(map(str, digits))


def split_of(digits: Digits) -> Split:
    """Return the split of these digits, which is the same for every task and on every machine."""
    digest = blake2b("".join(map(str, digits)).encode(), digest_size=8).digest()
    return "eval" if int.from_bytes(digest, "big") % 100 < _EVAL_PERCENT else "train"


@cache
def strings(split: Split) -> tuple[Digits, ...]:
    """List all digit strings of a split, in numerical order."""
    everything = (tuple(map(int, f"{i:0{LENGTH}d}")) for i in range(10**LENGTH))
    return tuple(digits for digits in everything if split_of(digits) == split)


def examples(source: str, n: int, split: str = "train", seed: int = 0) -> list[WorldExample]:
    """List `n` distinct examples of a source, its tasks in turn; a larger `n` only appends.

    Raises:
        ValueError: the source or split is unknown, or has fewer examples.
    """
    if source not in SOURCES:
        raise ValueError(f"unknown demo source {source!r}; {_known(source, list(SOURCES))}")
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}; {_known(split, get_args(Split))}")
    tasks = SOURCES[source]
    pool = strings(cast(Split, split))
    available = len(tasks) * len(pool)
    if not 1 <= n <= available:
        raise ValueError(
            f"n={n}: demo://{source} has 1 to {available} prompts in its {split} split; lower n (in a "
            "suite it is items)"
        )
    draws = [_shuffled(pool, f"{seed}/{task.name}/{split}") for task in tasks]
    return [WorldExample(tasks[i % len(tasks)], next(draws[i % len(tasks)])) for i in range(n)]


def demo_prompts(uri: str) -> list[Prompt]:
    """Make the prompts of `demo://SOURCE?n=2000&split=train|eval&seed=0`, with columns `answer` and `task`.

    Raises:
        ValueError: the URI has an unknown source, split or option, or asks for more prompts than exist.
    """
    parts = urlsplit(uri)
    if parts.scheme != "demo" or parts.path.strip("/") or parts.fragment:
        raise ValueError(f"{uri!r} is not of the form demo://SOURCE?n=2000&split=train&seed=0")
    options = {"n": "2000", "split": "train", "seed": "0"}
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    for key, value in pairs:
        if key not in options:
            raise ValueError(f"unknown option {key!r} in {uri!r}; {_known(key, list(options))}")
        options[key] = value
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"an option is given twice in {uri!r}")
    for key in ("n", "seed"):
        if not (options[key].isascii() and options[key].isdigit()):
            raise ValueError(f"{key}={options[key]!r} in {uri!r} is not a whole number")
    n, seed = int(options["n"]), int(options["seed"])
    return [
        Prompt(
            id=example.id,
            text=example.prompt,
            columns={"answer": example.answer, "task": example.task.name},
        )
        for example in examples(parts.netloc, n, options["split"], seed)
    ]


def _shuffled(pool: tuple[Digits, ...], seed: str) -> Iterator[Digits]:
    """Yield the pool in random order, lazily (Fisher-Yates).

    Only `Random.random` is used, since Python promises that its sequence never changes.
    """
    rng = random.Random(seed)
    moved: dict[int, int] = {}
    for i in range(len(pool)):
        j = i + int(rng.random() * (len(pool) - i))
        yield pool[moved.get(j, j)]
        moved[j] = moved.get(i, i)


def _known(name: str, known: Sequence[str]) -> str:
    """Return the known names, in their order, and the one that a misspelt name is most like."""
    close = closest(name, known)
    meant = "" if close is None else f"; did you mean {close!r}?"
    return f"known: {', '.join(known)}{meant}"

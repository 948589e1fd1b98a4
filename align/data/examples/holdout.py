"""Held-out part of a round's own file: the round is measured on it and does not learn from it.

A hash of the prompt decides, so that all answers to one prompt fall on one side and rows added later move
nothing. Where the gate's overlap check would refuse the result, because rows share runs of words
(conversations that continue one another, say), rows are tied together and each group falls on one side as
a whole, until the check has nothing to say. Groups are the connected components of what it refuses, and of
rows that continue one another. Source of the measure: `align.data.examples.fingerprints`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from align.data.examples.stream import Unit
from rollouts.prompts import PromptEncoder, content_id, distinct, text_of
from rollouts.types import Prompt

OPENING = 8
"""Tokens of a text that serve as a prompt."""
LARGEST_GROUP = 0.25
"""Part of what is to be held out that one group of several prompts may make up; a larger group is learnt
from, and more of the others is held out in its place."""


class Divisible(Protocol):
    """Rows that can be divided, by the name of the prompt or document that each belongs to."""

    @property
    def names(self) -> Sequence[str]:
        """Name per row of its prompt or document; rows of one name stay together."""
        ...

    def clashes(self, held_names: frozenset[str]) -> Iterable[tuple[str, str]]:
        """Yield pairs of names, one held out and one not, that may not lie on two sides."""
        ...

    def continuations(self) -> Iterable[tuple[str, str]]:
        """Yield pairs of names whose rows were cut from one conversation or text."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Division:
    """Result of dividing rows: the held-out names and their counts."""

    held: frozenset[str]
    """Names of the held-out prompts or documents."""
    share: float
    """Share of rows that was to be held out."""
    num_rows: int
    num_held: int
    """Rows held out."""
    num_tied: int
    """Rows that stay with another prompt's, because they share runs of words with it."""
    largest: int
    """Rows in the largest group of several prompts; 0 if nothing is tied."""

    @property
    def sentence(self) -> str:
        """Counts of held-out and tied rows in a sentence."""
        text = f"{self.num_held} of {self.num_rows} rows held out"
        if self.num_tied and self.num_held < self.share * self.num_rows / 2:
            text += f" in place of {round(self.share * self.num_rows)}"
        if self.num_tied:
            text += (
                f"; {self.num_tied} rows share runs of words with others and stay with them, "
                f"up to {self.largest} together"
            )
        return text


def divide(rows: Divisible, share: float) -> Division:
    """Hold out about ``share`` of some rows, so that nothing held out clashes with the rest.

    Where nothing clashes at first, nothing is tied: the hash alone decides. Otherwise whole conversations
    are tied, and then whatever clashes still.
    """
    sizes = Counter(rows.names)
    ties = _Ties(sizes)
    held_names = ties.held_out(share)
    clashes = list(rows.clashes(held_names))
    if clashes:
        clashes += rows.continuations()
    while clashes:
        for first, second in clashes:
            ties.join(first, second)
        held_names = ties.held_out(share)
        clashes = list(rows.clashes(held_names))
    groups = [group for group in ties.groups() if len(group) > 1]
    tied = [sum(sizes[name] for name in group) for group in groups]
    return Division(
        held=held_names,
        share=share,
        num_rows=len(rows.names),
        num_held=sum(sizes[name] for name in held_names),
        num_tied=sum(tied),
        largest=max(tied, default=0),
    )


@dataclass(frozen=True, slots=True)
class _Alone:
    """Divisible rows without clashes."""

    names: Sequence[str]

    def clashes(self, held_names: frozenset[str]) -> Iterable[tuple[str, str]]:
        return ()

    def continuations(self) -> Iterable[tuple[str, str]]:
        return ()


def hold_out(units: Sequence[Unit], share: float) -> tuple[tuple[Unit, ...], tuple[Unit, ...]]:
    """Divide units by the hash of their prompt alone; return those to learn from and the held-out ones."""
    return parted(units, divide(_Alone([name_of(unit) for unit in units]), share).held)


class _Ties:
    """Names in groups, and the side of the split that each group falls on."""

    def __init__(self, sizes: Counter[str]) -> None:
        self._sizes = sizes
        self._above = {name: name for name in sizes}

    def join(self, name: str, other: str) -> None:
        """Merge the groups of two names under the root whose hash comes first, in any order of calls."""
        first, second = sorted((self._root(name), self._root(other)), key=_rank)
        self._above[second] = first

    def groups(self) -> list[list[str]]:
        members: dict[str, list[str]] = {}
        for name in self._above:
            members.setdefault(self._root(name), []).append(name)
        return list(members.values())

    def held_out(self, share: float) -> frozenset[str]:
        """Return the names on the held-out side.

        A name by itself falls where its hash says, and a group where that of its first name does.
        """
        total = sum(self._sizes.values())
        groups = [(self._root(group[0]), group) for group in self.groups()]
        big = {
            root
            for root, group in groups
            if len(group) > 1 and self._size(group) > max(1.0, LARGEST_GROUP * share * total)
        }
        rest = total - sum(self._size(group) for root, group in groups if root in big)
        limit = share * total / rest if rest else 0.0
        return frozenset(
            name
            for root, group in groups
            if root not in big and place(root) < limit
            for name in group
        )

    def _size(self, group: Sequence[str]) -> int:
        return sum(self._sizes[name] for name in group)

    def _root(self, name: str) -> str:
        while (above := self._above[name]) != name:
            self._above[name] = self._above[above]
            name = above
        return name


def place(name: str) -> float:
    """Map a name to a number between 0 and 1 by its hash; numbers below the share are held out."""
    digest = hashlib.sha256(f"held out/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _rank(name: str) -> bytes:
    """Return a key that orders the names of a group independently of `place`."""
    return hashlib.sha256(f"first of a group/{name}".encode()).digest()


def name_of(unit: Unit) -> str:
    """Return the name that a unit is held out by: its prompt's id, or its own if it has no prompt."""
    return unit.prompt.id if unit.prompt is not None else unit.id


def parted(
    units: Sequence[Unit], held_names: frozenset[str]
) -> tuple[tuple[Unit, ...], tuple[Unit, ...]]:
    """Return the units to learn from and the held-out ones."""
    remaining = tuple(unit for unit in units if name_of(unit) not in held_names)
    return remaining, tuple(unit for unit in units if name_of(unit) in held_names)


def measured_units(units: Iterable[Unit], items: int) -> list[Unit]:
    """Return the first ``items`` distinct units with a preferred answer, which a suite measures."""
    good = {unit.id: unit for unit in units if any(r.advantage == 1.0 for r in unit.rows)}
    return list(good.values())[:items]


def trained_texts(unit: Unit, encoder: PromptEncoder) -> Iterator[str]:
    """Yield the prompt of a unit, and every answer behind its prompt."""
    if unit.prompt is not None:
        yield text_of(unit.prompt)
    yield from answer_texts(unit, encoder)


def answer_texts(unit: Unit, encoder: PromptEncoder) -> list[str]:
    """Return every answer of a unit behind its prompt, as a suite shows it."""
    return [encoder.decode((*row.prompt_ids, *row.completion_ids)) for row in unit.rows]


def prompts_of(units: Sequence[Unit], encoder: PromptEncoder) -> list[Prompt]:
    """Return the distinct prompts of examples; of texts their first few words.

    Later rounds replay them, and drift is measured on them.
    """
    return distinct([unit.prompt or _opening(unit, encoder) for unit in units])


def _opening(unit: Unit, encoder: PromptEncoder) -> Prompt:
    (row,) = unit.rows
    text = encoder.decode((*row.prompt_ids, *row.completion_ids)[:OPENING]).strip() or "The"
    return Prompt(id=content_id(text), text=text, round=row.round)

"""Held-out part of a round's own file, which the round is measured on and does not learn from.

A hash of the prompt decides, so all answers to one prompt are on one side, and rows added later move no
others. If rows share runs of words, as conversations that continue one another do, the gate's overlap
check would refuse the division. Such rows are then tied together and each group is on one side as a whole,
until the check passes. Groups are the connected components of the pairs that the check refuses and of rows
that continue one another. `align.data.examples.fingerprints` has the measure.
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
"""Number of a text's first tokens that serve as its prompt."""
LARGEST_GROUP = 0.25
"""Largest share of the held-out rows that one group of several prompts may have. A larger group is learnt
from, and more of the other rows are held out instead."""


class Divisible(Protocol):
    """Rows that can be divided, each by the name of its prompt or document."""

    @property
    def names(self) -> Sequence[str]:
        """Name of each row's prompt or document; rows of one name stay together."""
        ...

    def clashes(self, held_names: frozenset[str]) -> Iterable[tuple[str, str]]:
        """Yield pairs of names, one held out and one not, that must be on the same side."""
        ...

    def continuations(self) -> Iterable[tuple[str, str]]:
        """Yield pairs of names whose rows were cut from one conversation or text."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Division:
    """Held-out names of divided rows, with counts."""

    held_out: frozenset[str]
    """Names of the held-out prompts or documents."""
    share: float
    """Share of rows that should be held out."""
    num_rows: int
    num_held: int
    """Number of rows held out."""
    num_tied: int
    """Number of rows that stay with those of another prompt because they share runs of words."""
    largest: int
    """Number of rows in the largest group of several prompts; 0 if nothing is tied."""

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
    """Hold out about ``share`` of the rows, such that no held-out row clashes with the others.

    If nothing clashes at first, the hash alone decides. Otherwise whole conversations are tied together,
    and then all rows that still clash.
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
        held_out=held_names,
        share=share,
        num_rows=len(rows.names),
        num_held=sum(sizes[name] for name in held_names),
        num_tied=sum(tied),
        largest=max(tied, default=0),
    )


class _Ties:
    """Groups of names, and the side of the split that each group is on."""

    def __init__(self, sizes: Counter[str]) -> None:
        self._sizes = sizes
        self._above = {name: name for name in sizes}

    def join(self, name: str, other: str) -> None:
        """Merge the groups of two names under the root whose hash comes first.

        The order of calls does not matter, and the hash is independent of `place`.
        """

        def rank(root: str) -> bytes:
            return hashlib.sha256(f"first of a group/{root}".encode()).digest()

        first, second = sorted((self._root(name), self._root(other)), key=rank)
        self._above[second] = first

    def groups(self) -> list[list[str]]:
        """List the names of each group."""
        members: dict[str, list[str]] = {}
        for name in self._above:
            members.setdefault(self._root(name), []).append(name)
        return list(members.values())

    def held_out(self, share: float) -> frozenset[str]:
        """Return the names on the held-out side, by the hash of each name or of a group's first name."""
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


def name_of(unit: Unit) -> str:
    """Return the name of a unit in the split: its prompt's id, or its own if it has no prompt."""
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
    """Yield the prompt of a unit, and each answer with the prompt before it."""
    if unit.prompt is not None:
        yield text_of(unit.prompt)
    yield from answer_texts(unit, encoder)


def answer_texts(unit: Unit, encoder: PromptEncoder) -> list[str]:
    """Return each answer of a unit with the prompt before it, as a suite shows it."""
    return [encoder.decode((*row.prompt_ids, *row.completion_ids)) for row in unit.rows]


def prompts_of(units: Sequence[Unit], encoder: PromptEncoder) -> list[Prompt]:
    """Return the distinct prompts of examples, or the first few words of texts.

    Later rounds replay them, and drift is measured on them.
    """
    prompts = []
    for unit in units:
        prompt = unit.prompt
        if prompt is None:
            (row,) = unit.rows
            text = encoder.decode((*row.prompt_ids, *row.completion_ids)[:OPENING]).strip() or "The"
            prompt = Prompt(id=content_id(text), text=text, round=row.round)
        prompts.append(prompt)
    return distinct(prompts)

"""Rows of a round that may not lie on both sides of its held-out split, by the gate's own measure.

Each class below compares the texts of held-out rows, as the round's suite shows them, with the texts that
the learner sees, and names the rows that the gate's overlap check would refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from align.config.gate import OverlapConfig
from align.data.examples.continued import continuations
from align.data.examples.encode import Document
from align.data.examples.fingerprints import Fingerprint, ItemIndex, Units, fingerprint, words
from align.data.examples.holdout import answer_texts, measured_units, name_of, trained_texts
from align.data.examples.stream import Unit
from rollouts.prompts import PromptEncoder, content_id, text_of
from rollouts.types import Prompt


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Overlap rule of the gate, with the units of its n-grams and the number of items of a suite."""

    rule: OverlapConfig
    units: Units
    items: int

    def print(self, text: str) -> Fingerprint:
        """Return the fingerprint of a text."""
        return fingerprint(text, self.rule.ngram, self.units)

    def matches(
        self, items: Sequence[Sequence[Fingerprint]], texts: Sequence[Fingerprint]
    ) -> Iterator[tuple[int, int]]:
        """Yield the position of each item that overlaps a text, with the position of that text."""
        for match in ItemIndex(items, self.rule.ngram).matches(texts):
            if match.whole or match.share >= self.rule.share:
                yield match.item, match.text


def units_of(rule: OverlapConfig, encoder: PromptEncoder) -> Units:
    """Return the function that splits a text for n-grams: into words, or into the model's tokens."""

    def tokens(text: str) -> list[int]:
        return list(encoder.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    return tokens if rule.unit == "tokens" else words


class PromptRows:
    """Prompts of a round that samples, each of which is an item."""

    def __init__(self, prompts: Sequence[Prompt], measure: Measure) -> None:
        self.names = [prompt_name(prompt) for prompt in prompts]
        self._prompts, self._measure = prompts, measure
        self._prints = [measure.print(text_of(prompt)) for prompt in prompts]

    def clashes(self, held_names: frozenset[str]) -> Iterator[tuple[str, str]]:
        """Yield pairs of names: a held-out prompt and a training prompt that overlaps it."""
        sides: tuple[list[int], list[int]] = ([], [])
        for position, name in enumerate(self.names):
            sides[name in held_names].append(position)
        remaining, items = sides[0], sides[1][: self._measure.items]
        shown = [[self._prints[i]] for i in items]
        for item, text in self._measure.matches(shown, [self._prints[i] for i in remaining]):
            yield self.names[items[item]], self.names[remaining[text]]

    def continuations(self) -> Iterator[tuple[str, str]]:
        """Yield pairs of names whose prompts belong to one conversation."""
        return continuations(self.names, self._prompts)


class UnitRows:
    """Units of examples, or windows of texts, each of which is an item with its answers."""

    def __init__(self, units: Sequence[Unit], encoder: PromptEncoder, measure: Measure) -> None:
        self.names = [name_of(unit) for unit in units]
        self._units, self._encoder, self._measure = units, encoder, measure

    @cached_property
    def _prints(self) -> list[tuple[Fingerprint, ...]]:
        """Fingerprints of every unit: its prompt's, if it has one, then its answers'."""
        return [
            tuple(self._measure.print(text) for text in trained_texts(unit, self._encoder))
            for unit in self._units
        ]

    def clashes(self, held_names: frozenset[str]) -> Iterator[tuple[str, str]]:
        """Yield pairs of names: a held-out unit and a training unit that its answers overlap with."""
        first = {unit.id: position for position, unit in reversed(list(enumerate(self._units)))}
        shown = measured_units(
            (unit for unit in self._units if name_of(unit) in held_names), self._measure.items
        )
        items = [self._prints[first[unit.id]][-len(unit.rows) :] for unit in shown]
        texts: list[Fingerprint] = []
        owners: list[str] = []
        for name, prints in zip(self.names, self._prints, strict=True):
            if name not in held_names:
                texts.extend(prints)
                owners.extend([name] * len(prints))
        for item, text in self._measure.matches(items, texts):
            yield name_of(shown[item]), owners[text]

    def continuations(self) -> Iterator[tuple[str, str]]:
        """Yield pairs of names whose prompts belong to one conversation."""
        return continuations(self.names, [unit.prompt for unit in self._units])


class DocumentRows:
    """Documents that are cut into windows; an item is a window, which may have parts of several."""

    def __init__(
        self,
        documents: Sequence[Document],
        cut: Callable[[Sequence[Document]], Sequence[Unit]],
        encoder: PromptEncoder,
        measure: Measure,
    ) -> None:
        """Keep the documents, and the function that cuts some of them into windows."""
        self.names = [document.name for document in documents]
        self._documents, self._cut = documents, cut
        self._encoder, self._measure = encoder, measure

    def clashes(self, held_names: frozenset[str]) -> Iterator[tuple[str, str]]:
        """Yield pairs of names: a held-out and a training document with overlapping windows."""
        sides: tuple[list[Document], list[Document]] = ([], [])
        for document in self._documents:
            sides[document.name in held_names].append(document)
        shown = measured_units(self._cut(sides[1]), self._measure.items)
        learnt = self._cut(sides[0])
        items = [[self._measure.print(t) for t in answer_texts(u, self._encoder)] for u in shown]
        texts = [self._measure.print(t) for u in learnt for t in answer_texts(u, self._encoder)]
        for item, text in self._measure.matches(items, texts):
            for held_name in shown[item].documents:
                for kept_name in learnt[text].documents:
                    yield held_name, kept_name

    def continuations(self) -> Iterator[tuple[str, str]]:
        """Yield pairs of names of documents, one of which begins with the other."""
        texts = [Prompt(id=document.name, text=document.text) for document in self._documents]
        return continuations(self.names, texts)


def prompt_name(prompt: Prompt) -> str:
    """Return the name of a prompt in the held-out split: the id of its text or messages alone."""
    return content_id(prompt.text if prompt.text is not None else prompt.messages or ())

"""Comparison of a suite's items with the training data, as whole texts and by common runs of words.

An item is refused where its text is a training text, or where one training text holds at least a
`share` of the item's own n-grams; `align.data.examples.fingerprints` says which are its own.

What is held in memory grows with the suites, not with what is trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

from align.config.gate import OverlapConfig
from align.data.examples.fingerprints import AT_ONCE, ItemIndex, Units, fingerprint, ngrams, words
from align.store.durable import write_atomic
from align.store.paths import StorePaths
from rollouts.errors import UserError

__all__ = [
    "Trained",
    "find_overlap",
    "find_overlaps",
    "forbid",
    "load_overlaps",
    "ngrams",
    "save_overlaps",
    "words",
]

SHOWN = 3
"""Offending items that an error names."""


class Trained(NamedTuple):
    """A text that is trained on."""

    text: str
    origin: str
    """Source of the text in words: ``the training prompts of round 'a'``."""
    at: str = ""
    """File and line, ``prompts.jsonl:7``; empty if the text was not read from a file."""


class Item(NamedTuple):
    """One item of a suite, with all texts it is compared by."""

    texts: Sequence[str]
    """Texts of the item; a training text that matches any of them is a hit."""
    at: str = ""
    """File and line, ``eval.jsonl:7``; empty if the item was not read from a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """An item beside the training text it has most in common with."""

    item: str
    """Text of the item."""
    origin: str
    """Source of the training text, as `Trained.origin` has it."""
    share: float
    """Share of the item's own n-grams; 1 for the same text."""
    whole: bool
    """True if the texts are the same."""
    at: str = ""
    """File and line of the item."""
    in_: str = ""
    """File and line of the training text."""

    @property
    def shown(self) -> str:
        """Beginning of the item, with the lines of item and training text if they are known."""
        places = f" ({self.at or 'it'} is in {self.in_})" if self.in_ else ""
        return f"{self.item[:200]!r}{places}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """Overlap of a suite with everything that is trained on."""

    suite: str
    items: int
    only_whole: int
    """Items with too few n-grams of their own, compared whole."""
    ngram: int | None
    unit: str
    limit: float
    """Share at which an item is refused."""
    highest: float
    """Largest share that was found."""
    refused: tuple[Hit, ...]


def find_overlap(
    suite: str,
    items: Sequence[Sequence[str]],
    trained: Iterable[Trained],
    rule: OverlapConfig,
    units: Units = words,
) -> Overlap:
    """Compare one suite, given by the texts of its items, with the texts that are trained on."""
    return find_overlaps({suite: [Item(texts) for texts in items]}, trained, rule, units)[suite]


def find_overlaps(
    suites: Mapping[str, Sequence[Item]],
    trained: Iterable[Trained],
    rule: OverlapConfig,
    units: Units = words,
) -> dict[str, Overlap]:
    """Compare suites with the texts that are trained on, in one pass over them."""
    n = rule.ngram
    indexes = {
        name: ItemIndex([[fingerprint(t, n, units) for t in item.texts] for item in items], n)
        for name, items in suites.items()
    }
    best: dict[str, dict[int, Hit]] = {name: {} for name in suites}
    rest = iter(trained)
    while batch := list(islice(rest, AT_ONCE)):
        prints = [fingerprint(text.text, n, units) for text in batch]
        for name, index in indexes.items():
            for match in index.matches(prints):
                known = best[name].get(match.item)
                if known is None or (match.share, match.whole) > (known.share, known.whole):
                    item, text = suites[name][match.item], batch[match.text]
                    best[name][match.item] = Hit(
                        item=item.texts[0], origin=text.origin, share=match.share,
                        whole=match.whole, at=item.at, in_=text.at,
                    )  # fmt: skip
    return {
        name: _overlap(name, len(suites[name]), index.only_whole, best[name], rule)
        for name, index in indexes.items()
    }


def _overlap(
    suite: str, items: int, only_whole: int, hits: Mapping[int, Hit], rule: OverlapConfig
) -> Overlap:
    return Overlap(
        suite=suite,
        items=items,
        only_whole=only_whole,
        ngram=rule.ngram,
        unit=rule.unit,
        limit=rule.share,
        highest=max((hit.share for hit in hits.values()), default=0.0),
        refused=tuple(
            hits[i] for i in sorted(hits) if hits[i].whole or hits[i].share >= rule.share
        ),
    )


def forbid(overlap: Overlap) -> None:
    """Refuse a suite with items that are trained on.

    Raises:
        UserError: names the first of them, where they are trained on, and how many there are.
    """
    if not overlap.refused:
        return
    source = overlap.refused[0].origin
    there = [hit for hit in overlap.refused if hit.origin == source]
    shown = ", ".join(hit.shown for hit in there[:SHOWN])
    runs = [hit for hit in there if not hit.whole]
    how = (
        f"{len(runs)} of them not word for word, but with {100 * max(h.share for h in runs):.0f}% of "
        f"their runs of {overlap.ngram} {overlap.unit} in one training text; "
        if runs
        else ""
    )
    raise UserError(
        f"suite {overlap.suite!r} shares {len(there)} of its {overlap.items} items with {source}; "
        f"the first: {shown}",
        where=overlap.suite,
        cause=f"{how}an item that was trained on measures memory, not the behaviour",
        remedy="hold these prompts out: take them out of the one or of the other"
        + ("; gate.overlap says what counts" if runs else ""),
    )


def save_overlaps(folder: Path, overlaps: Iterable[Overlap]) -> None:
    """Keep with a store's evidence what was compared and found."""
    content = json.dumps([asdict(overlap) for overlap in overlaps], indent=1) + "\n"
    write_atomic(StorePaths(folder).overlaps, content.encode())


def load_overlaps(folder: Path) -> tuple[Overlap, ...]:
    """Read what `save_overlaps` wrote; nothing where nothing was compared yet, or the file is damaged."""
    try:
        content = StorePaths(folder).overlaps.read_bytes()
        return TypeAdapter(tuple[Overlap, ...]).validate_json(content)
    except (OSError, ValueError):
        return ()

"""Whether a suite's items were trained on: compared whole, and by the runs of words they share.

An item is refused where its text is a training text, or where one training text holds at least a
`share` of the item's own n-grams. Own are those that at most two items of the suite have: what more of
them share is their template (an instruction, a few examples, a common opening) and says nothing of one
item. A prompt shorter than n words is only compared whole, and so is one whose template leaves it fewer
than n n-grams: behind a long instruction two short questions that begin alike would share most of them.
Whole means without case and spacing; n-grams leave out punctuation too, as GPT-3's decontamination does
(arXiv 2005.14165, appendix C, 13 words).

What is held in memory grows with the suites, not with what is trained on.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from align.gate_config import OverlapConfig
from rollouts.errors import UserError

Units = Callable[[str], Sequence[Hashable]]
"""A text as what n-grams are made of."""

TEMPLATE_ITEMS = 3
"""Items of a suite that share an n-gram, from which on it is their template."""

SHOWN = 3
"""Offending items that an error names."""

OVERLAP_FILE = Path("evaluations") / "overlap.json"


class Trained(NamedTuple):
    """A text that is trained on."""

    text: str
    place: str
    """Where, in words: ``the training prompts of round 'a'``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """An item beside the training text it has most in common with."""

    item: str
    """Its text."""
    place: str
    share: float
    """Of the item's own n-grams; 1 for the same text."""
    whole: bool
    """The texts are the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """What a suite has in common with everything that is trained on."""

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


def words(text: str) -> list[str]:
    """Words without case and punctuation.

    >>> words("Once, a girl")
    ['once', 'a', 'girl']
    """
    return re.findall(r"\w+", text.casefold())


def ngrams(units: Sequence[Hashable], n: int) -> Iterator[int]:
    """A hash of every run of ``n`` units, within this process."""
    return (hash(tuple(units[start : start + n])) for start in range(len(units) - n + 1))


def find_overlap(
    suite: str,
    items: Sequence[Sequence[str]],
    trained: Iterable[Trained],
    rule: OverlapConfig,
    units: Units = words,
) -> Overlap:
    """Compare a suite with what is trained on.

    Args:
        items: the texts of every item; one that is found makes the item a hit.
    """
    whole: dict[str, list[int]] = {}
    for index, texts in enumerate(items):
        for text in texts:
            whole.setdefault(_plain(text), []).append(index)
    grams, sizes = _own_ngrams(items, rule.ngram, units)
    hits: dict[int, Hit] = {}
    for text, place in trained:
        for index in whole.get(_plain(text), ()):
            if index not in hits or not hits[index].whole:
                hits[index] = Hit(item=items[index][0], place=place, share=1.0, whole=True)
        for index, share in _shares(text, grams, sizes, rule.ngram, units):
            if index not in hits or share > hits[index].share:
                hits[index] = Hit(item=items[index][0], place=place, share=share, whole=False)
    return Overlap(
        suite=suite,
        items=len(items),
        only_whole=len(items) - len(sizes),
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
    place = overlap.refused[0].place
    there = [hit for hit in overlap.refused if hit.place == place]
    shown = ", ".join(repr(hit.item[:200]) for hit in there[:SHOWN])
    runs = [hit for hit in there if not hit.whole]
    how = (
        f"{len(runs)} of them not word for word, but with {100 * max(h.share for h in runs):.0f}% of "
        f"their runs of {overlap.ngram} {overlap.unit} in one training text; "
        if runs
        else ""
    )
    raise UserError(
        f"suite {overlap.suite!r} shares {len(there)} of its {overlap.items} items with {place}; "
        f"the first: {shown}",
        where=overlap.suite,
        cause=f"{how}an item that was trained on measures memory, not the behaviour",
        remedy="hold these prompts out: take them out of the one or of the other"
        + ("; gate.overlap says what counts" if runs else ""),
    )


def save_overlaps(folder: Path, overlaps: Iterable[Overlap]) -> None:
    """Keep with a store's evidence what was compared and found."""
    path = folder / OVERLAP_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(overlap) for overlap in overlaps], indent=1) + "\n")


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _own_ngrams(
    items: Sequence[Sequence[str]], n: int | None, units: Units
) -> tuple[dict[int, tuple[int, ...]], Counter[int]]:
    """Items by n-gram, without those of a template; and how many n-grams of its own an item has."""
    found: dict[int, tuple[int, ...]] = {}
    totals: Counter[int] = Counter()
    for index, texts in enumerate(items) if n else ():
        own = {gram for text in texts for gram in ngrams(units(text), n or 0)}
        totals[index] = len(own)
        for gram in own:
            # Of a template's n-gram no more than is needed to know it by.
            found[gram] = (*found.get(gram, ()), index)[:TEMPLATE_ITEMS]
    grams = {gram: indices for gram, indices in found.items() if len(indices) < TEMPLATE_ITEMS}
    sizes = Counter(index for indices in grams.values() for index in indices)
    telling = {i: size for i, size in sizes.items() if size == totals[i] or size >= (n or 0)}
    return grams, Counter(telling)


def _shares(
    text: str,
    grams: Mapping[int, Sequence[int]],
    sizes: Mapping[int, int],
    n: int | None,
    units: Units,
) -> Iterator[tuple[int, float]]:
    """Items with n-grams in a text, and the share of their own that is in it."""
    if n is None or not grams:
        return
    seen = {gram for gram in ngrams(units(text), n) if gram in grams}
    counts = Counter(index for gram in seen for index in grams[gram])
    for index in counts.keys() & sizes.keys():
        yield index, counts[index] / sizes[index]

"""Fingerprints of texts by their runs of words, and an index of items to look texts up in.

An item's own n-grams are those that fewer than `TEMPLATE_ITEMS` items have. N-grams of more items belong to
their template (an instruction, a few examples, a common opening) and do not identify an item. An item
without n-grams, or with a template and fewer than n of its own, is only compared as a whole, without case
and spacing. Words leave out punctuation too, as in GPT-3's decontamination (arXiv 2005.14165, appendix C,
13 words).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Units = Callable[[str], Sequence[Hashable]]
"""Function that splits a text into the units of its n-grams."""
Grams = NDArray[np.uint64]
"""Hashes [N] of n-grams, valid within this process."""

TEMPLATE_ITEMS = 3
"""Number of items that must share an n-gram for it to count as their template."""
AT_ONCE = 4096
"""Number of texts that are looked up together."""
_EMPTY: Grams = np.empty(0, dtype=np.uint64)


class Fingerprint(NamedTuple):
    """Hashes of a text, for comparisons."""

    whole: int
    """Hash of the text without case and spacing, valid within this process."""
    grams: Grams
    """Distinct n-grams of the text, in order."""


class Match(NamedTuple):
    """Pair of a text and an item with common n-grams."""

    text: int
    """Position of the text."""
    item: int
    """Position of the item."""
    share: float
    """Share of the item's own n-grams that the text has; 1 for the same text."""
    whole: bool
    """True if text and item are the same."""


def words(text: str) -> list[str]:
    """Split a text into words without case and punctuation.

    >>> words("Once, a girl")
    ['once', 'a', 'girl']
    """
    return re.findall(r"\w+", text.casefold())


def ngrams(units: Sequence[Hashable], n: int) -> Grams:
    """Return a hash of every run of ``n`` units, in order."""
    if len(units) < n:
        return _EMPTY
    hashes = np.fromiter(map(hash, units), dtype=np.int64, count=len(units)).view(np.uint64)
    # Each hash is a sum of products modulo 2**64, since integers wrap around.
    hashed: Grams = np.convolve(hashes, _factors(n), "valid")
    return hashed


def fingerprint(text: str, n: int | None, units: Units = words) -> Fingerprint:
    """Return a text's fingerprint; without n-grams if ``n`` is None, so that only whole texts match."""
    # Sorted and without repeats as by `numpy.unique`, which takes several times as long for a text.
    ordered = _EMPTY if n is None else np.sort(ngrams(units(text), n))
    fresh = np.ones(len(ordered), dtype=bool)
    fresh[1:] = ordered[1:] != ordered[:-1]
    grams: Grams = ordered[fresh]
    return Fingerprint(hash(" ".join(text.casefold().split())), grams)


class ItemIndex:
    """Index of items by their n-grams and by their whole texts.

    Attributes:
        only_whole: number of items with too few n-grams of their own, which are only compared as a whole.
    """

    def __init__(self, items: Sequence[Sequence[Fingerprint]], n: int | None) -> None:
        """Index the texts of every item; an item matches if any of its texts does."""
        self._whole: dict[int, list[int]] = {}
        for index, texts in enumerate(items):
            for text in texts:
                self._whole.setdefault(text.whole, []).append(index)
        item_grams = [
            np.unique(np.concatenate([t.grams for t in texts] or [_EMPTY])) for texts in items
        ]
        totals = np.array([len(grams) for grams in item_grams], dtype=np.int64)
        owners = np.repeat(np.arange(len(items)), totals)
        grams = np.concatenate(item_grams or [_EMPTY])
        order = np.argsort(grams, kind="stable")
        grams, owners = grams[order], owners[order]
        counts = np.unique(grams, return_counts=True)[1]
        is_own = np.repeat(counts, counts) < TEMPLATE_ITEMS
        self._grams, self._owners = grams[is_own], owners[is_own]
        self._sizes = np.bincount(self._owners, minlength=len(items))
        telling = (self._sizes == totals) | (self._sizes >= (n or 0))
        self._telling = telling & (self._sizes > 0)
        self.only_whole = len(items) - int(self._telling.sum())

    def matches(self, texts: Sequence[Fingerprint]) -> Iterator[Match]:
        """Yield every pair of a text and an item that are the same or share n-grams of the item's own."""
        for first in range(0, len(texts), AT_ONCE):
            yield from self._matches(texts[first : first + AT_ONCE], first)

    def _matches(self, texts: Sequence[Fingerprint], first: int) -> Iterator[Match]:
        for number, text in enumerate(texts, start=first):
            for item in self._whole.get(text.whole, ()):
                yield Match(number, item, 1.0, whole=True)
        if not len(self._grams):
            return
        sizes = [len(text.grams) for text in texts]
        grams = np.concatenate([text.grams for text in texts] or [_EMPTY])
        numbers = np.repeat(np.arange(len(texts)), sizes)
        begins = np.searchsorted(self._grams, grams, side="left")
        # An n-gram of an item's own occurs once or twice, for its one or two items.
        pairs = []
        for offset in range(TEMPLATE_ITEMS - 1):
            at = np.minimum(begins + offset, len(self._grams) - 1)
            hit = (begins + offset < len(self._grams)) & (self._grams[at] == grams)
            pairs.append(numbers[hit] * len(self._sizes) + self._owners[at[hit]])
        keys, counts = np.unique(np.concatenate(pairs), return_counts=True)
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            text_at, item = divmod(key, len(self._sizes))
            if self._telling[item]:
                yield Match(first + text_at, item, count / int(self._sizes[item]), whole=False)


@cache
def _factors(n: int) -> Grams:
    """Draw an odd number of 64 bits for each position in a run."""
    factors: Grams = np.random.default_rng(n).integers(2**63, size=n, dtype=np.uint64) * np.uint64(
        2
    ) + np.uint64(1)
    return factors

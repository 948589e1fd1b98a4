"""Order in which a suite's items are measured where it may stop early, and where it is looked at.

The order follows from the names of suite and items alone, so a verdict that says how many items it was
drawn from can be drawn again from a file that holds more. Clusters enter whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.gate.measurement.results import ItemResults

LOOKS = 48
"""Looks at a large suite, where neither a setting nor a stored verdict says how many."""
FEWEST = 32
"""Independent items, or clusters, between two looks at least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Early:
    """Size of a suite that may stop early; what bets on its items need to know before the first."""

    items: int
    units: int
    """Independent clusters of items; as many as items where every item counts by itself."""
    largest: int = 1
    """Items of the largest cluster."""
    looks: int = LOOKS
    """Batches that it is measured in, at most."""


def early_of(ids: Sequence[str], clusters: Sequence[str], looks: int = LOOKS) -> Early:
    """Return the size of a suite with these items; empty ``clusters``: every item counts by itself.

    >>> early_of(["a", "b", "c"], ["x", "y", "x"], looks=24)
    Early(items=3, units=2, largest=2, looks=24)
    """
    sizes: dict[str, int] = {}
    for label in clusters or ids:
        sizes[label] = sizes.get(label, 0) + 1
    largest = max(sizes.values(), default=1)
    return Early(items=len(ids), units=len(sizes), largest=largest, looks=looks)


def in_order(suite: str, ids: Sequence[str], clusters: Sequence[str] = ()) -> list[int]:
    """Return the places of items in the order of measuring, those of a cluster next to each other."""

    def rank(text: str) -> bytes:
        return sha256(f"{suite}/{text}".encode()).digest()

    labels = clusters or ids
    keys = [(rank(label), rank(item)) for label, item in zip(labels, ids, strict=True)]
    return sorted(range(len(ids)), key=keys.__getitem__)


def num_looks(units: int, most: int) -> int:
    """Return how often a suite of so many independent units is looked at.

    >>> num_looks(12_000, 24), num_looks(100, 24), num_looks(10, 24)
    (24, 3, 1)
    """
    return max(1, min(most, units // FEWEST))


def looks(
    suite: str, ids: Sequence[str], clusters: Sequence[str] = (), most: int = LOOKS
) -> list[int]:
    """Return the numbers of items at which a suite is looked at, evenly spread; the last is all of them.

    >>> looks("s", [str(i) for i in range(100)])
    [33, 66, 100]
    """
    labels = clusters or ids
    order = in_order(suite, ids, clusters)
    ends = [
        end
        for end in range(1, len(order) + 1)
        if end == len(order) or labels[order[end - 1]] != labels[order[end]]
    ]
    count = num_looks(len(ends), most)
    return [ends[len(ends) * (index + 1) // count - 1] for index in range(count)]


def first(results: ItemResults, count: int) -> ItemResults:
    """Return the first ``count`` items of some results, in the order of measuring."""
    order = in_order(results.suite, results.item_ids, results.clusters)[:count]
    columns: dict[str, Any] = {
        field.name: tuple(value[index] for index in order)
        for field in fields(results)
        if isinstance(value := getattr(results, field.name), tuple) and value
    }
    return replace(results, **columns)


def in_common(results: ItemResults, other: ItemResults) -> tuple[ItemResults, ItemResults]:
    """Return two snapshots' results on the items that both have; unchanged where they have as many.

    Results of a suite that stops early hold its first items, so the fewer are among the more.
    """
    count = min(len(results.values), len(other.values))
    if len(results.values) == len(other.values):
        return results, other
    return first(results, count), first(other, count)

"""Measuring only what is not known yet: items of a rotating suite that came up before are taken over.

What was stored under an earlier rotation was sampled and scored as it would be now, in the same place and
with the same seed. Only results of exactly these rotations count: another metric gives other hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from align.gate.measurement.results import ItemResults
from align.gate.suites.suite import Suite


def earlier(suite: Suite, index: int) -> Iterator[str]:
    """Yield the hashes of what rounds before this one were measured on, the newest first."""
    if suite.rotates:
        for before in range(index - 1, -1, -1):
            yield suite.at(before).hash


def rest_of(suite: Suite, stored: Sequence[ItemResults]) -> Suite | None:
    """Return the part of a suite that no stored results have; None: nothing is left to measure."""
    known = {item for results in stored for item in results.item_ids}
    places = [i for i, item in enumerate(suite.item_ids) if item not in known]
    if not places:
        return None
    if len(places) == len(suite.item_ids):
        return suite
    return suite.part(places)


def joined(
    suite: Suite, parts: Sequence[ItemResults], suite_hash: str | None = None
) -> ItemResults:
    """Join results that have a suite's items between them; the first has priority.

    Args:
        suite_hash: that of the whole where ``suite`` is its first part; None: the suite's.
    """
    source: dict[str, tuple[ItemResults, int]] = {}
    for part in parts:
        for index, item in enumerate(part.item_ids):
            source.setdefault(item, (part, index))
    chosen = [source[item] for item in suite.item_ids]
    columns: dict[str, Any] = {
        field.name: tuple(getattr(part, field.name)[index] for part, index in chosen)
        if all(_has_column(part, field.name) for part, _ in chosen)
        else ()
        for field in fields(ItemResults)
        if isinstance(getattr(parts[0], field.name), tuple)
    }
    whole: dict[str, Any] = {"suite_hash": suite_hash or suite.hash}
    # What single items cost is not on record: it is known of parts that have no item in common.
    apart = sum(len(part.item_ids) for part in parts) == len(chosen)
    for name in ("tokens", "seconds", "retrieval_s"):
        costs = [getattr(part, name) for part in parts]
        whole[name] = sum(costs) if apart and None not in costs else None
    results = replace(parts[0], **columns, **whole)
    return replace(results, beside=suite.beside(results, parts))


def load_with_texts(path: Path) -> ItemResults:
    """Read stored results with the prompts and answers beside them, where the file has any."""
    import pyarrow.parquet as pq

    results = ItemResults.load(path)
    columns = pq.ParquetFile(path).read().to_pydict()
    texts: dict[str, Any] = {
        f"{name}s": tuple(columns[name]) for name in ("prompt", "answer") if name in columns
    }
    return replace(results, **texts)


def _has_column(results: ItemResults, name: str) -> bool:
    value = getattr(results, name)
    return isinstance(value, tuple) and len(value) == len(results.item_ids)

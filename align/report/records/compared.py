"""Results of two snapshots on one suite, item by item, with both answers where they were stored.

The files of results hold ids and values. A file that also has the columns ``answer`` and ``prompt``
(text) has its answers shown side by side.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.gate.evidence import Evidence
from align.gate.measurement.evaluate import ItemResults, paired
from align.gate.suites.looks import in_common
from align.report.printable import cut
from rollouts.errors import KeelError
from rollouts.types import SnapshotId

Change = tuple[float, str, float, float]
"""Candidate minus comparator, the item's id, its value under the comparator and under the candidate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedItem:
    """One item under the comparator and under the candidate."""

    id: str
    before: float
    after: float
    prompt: str | None = None
    answer_before: str | None = None
    answer_after: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedResults:
    """Two snapshots' results on one suite, item by item."""

    candidate: Path
    comparator: Path
    changes: tuple[Change, ...]
    """Changes of all items, the largest losses first."""

    def items(self, changes: Sequence[Change], text: int) -> tuple[ComparedItem, ...]:
        """Return these items with prompt and answers, each of at most ``text`` bytes."""
        ids = {id for _, id, _, _ in changes}
        after_texts, before_texts = (
            _texts(path, ids, text) for path in (self.candidate, self.comparator)
        )
        nothing = (None, None)
        return tuple(
            ComparedItem(
                id=id,
                before=before,
                after=after,
                prompt=after_texts.get(id, nothing)[0],
                answer_before=before_texts.get(id, nothing)[1],
                answer_after=after_texts.get(id, nothing)[1],
            )
            for _, id, before, after in changes
        )


def pair_between(
    evidence: Evidence, suite_hash: str | None, candidate: SnapshotId, comparator: SnapshotId
) -> ComparedResults | None:
    """Return the results of two snapshots on one suite; None if either has none."""
    try:
        paths = [evidence.locate(id, suite_hash or "") for id in (candidate, comparator)]
        results = in_common(*(ItemResults.load(path) for path in paths))
        values = zip(results[0].item_ids, *paired(*results), strict=True)
        differences = sorted((after - before, id, before, after) for id, after, before in values)
    except KeelError:
        return None
    return ComparedResults(candidate=paths[0], comparator=paths[1], changes=tuple(differences))


def _texts(path: Path, ids: Collection[str], most: int) -> dict[str, tuple[str | None, str | None]]:
    """Read prompt and answer by item, if the file has them."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    stored = [name for name in ("prompt", "answer") if name in file.schema_arrow.names]
    if not stored:
        return {}
    return {
        row["item_id"]: (cut(row.get("prompt"), most), cut(row.get("answer"), most))
        for row in file.read(columns=["item_id", *stored]).to_pylist()
        if row["item_id"] in ids
    }

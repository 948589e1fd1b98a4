"""Items that a candidate lost and won, with both answers where they were stored.

The files of results hold ids and values. A file that also has the columns ``answer`` and ``prompt``
(text) has its answers shown side by side.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from align.gate.checks import Check
from align.gate.evidence import Evidence
from align.gate.measurement.evaluate import ItemResults, paired
from align.gate.suites.looks import in_common
from align.gate.verdict import Verdict
from align.report.html.limits import Limits, cut
from rollouts.errors import KeelError
from rollouts.types import SnapshotId

Change = tuple[float, str, float, float]
"""Candidate minus comparator, the item's id, its value under the comparator and under the candidate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One item under the comparator and under the candidate."""

    id: str
    before: float
    after: float
    prompt: str | None = None
    answer_before: str | None = None
    answer_after: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """Items of one suite that changed, the largest changes first."""

    suite: str
    against: str
    lost: tuple[Item, ...]
    won: tuple[Item, ...]
    num_lost: int
    num_won: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two snapshots' results on one suite, item by item."""

    candidate: Path
    comparator: Path
    changes: tuple[Change, ...]
    """Of all items, the largest losses first."""

    def items(self, changes: Sequence[Change], text: int) -> tuple[Item, ...]:
        """These with prompt and answers, each of at most ``text`` bytes."""
        ids = {id for _, id, _, _ in changes}
        after_texts, before_texts = (
            _texts(path, ids, text) for path in (self.candidate, self.comparator)
        )
        nothing = (None, None)
        return tuple(
            Item(
                id=id,
                before=before,
                after=after,
                prompt=after_texts.get(id, nothing)[0],
                answer_before=before_texts.get(id, nothing)[1],
                answer_after=after_texts.get(id, nothing)[1],
            )
            for _, id, before, after in changes
        )


def changes(evidence: Evidence, verdict: Verdict, limits: Limits) -> tuple[Changes, ...]:
    """What changed on the suites that matter most to a verdict: those that failed come first, then the
    target, then the largest losses."""
    worst: dict[str, Check] = {}
    for check in sorted(verdict.checks, key=_matters):
        worst.setdefault(check.suite, check)
    found = (_changes(evidence, verdict, check, limits) for check in worst.values())
    changed = (one for one in found if one is not None and (one.num_lost or one.num_won))
    return tuple(islice(changed, limits.suites))


def pair_of(
    evidence: Evidence, verdict: Verdict, suite: str, comparator: SnapshotId
) -> Pair | None:
    """None where results are gone, or the comparator is a rule and no snapshot."""
    hashes = {rule.name: rule.hash for rule in verdict.inputs.suites}
    candidate = verdict.inputs.candidate.get(suite)
    if candidate is None:
        return None
    return pair_between(evidence, hashes.get(suite), candidate, comparator)


def pair_between(
    evidence: Evidence, suite_hash: str | None, candidate: SnapshotId, comparator: SnapshotId
) -> Pair | None:
    """Return the results of two snapshots on one suite; None if either has none."""
    try:
        paths = [evidence.locate(id, suite_hash or "") for id in (candidate, comparator)]
        results = in_common(*(ItemResults.load(path) for path in paths))
        values = zip(results[0].item_ids, *paired(*results), strict=True)
        found = sorted((after - before, id, before, after) for id, after, before in values)
    except KeelError:
        return None
    return Pair(candidate=paths[0], comparator=paths[1], changes=tuple(found))


def _matters(check: Check) -> tuple[bool, bool, bool, float]:
    return (
        check.role == "shown",
        check.outcome == "passed",
        check.role != "target",
        check.difference,
    )


def _changes(evidence: Evidence, verdict: Verdict, check: Check, limits: Limits) -> Changes | None:
    pair = pair_of(evidence, verdict, check.suite, check.snapshot)
    if pair is None:
        return None
    lost = [change for change in pair.changes if change[0] < 0]
    won = [change for change in reversed(pair.changes) if change[0] > 0]
    shown_lost, shown_won = lost[: limits.items], won[: limits.items]
    items = pair.items([*shown_lost, *shown_won], limits.text)
    return Changes(
        suite=check.suite,
        against=", ".join((check.against, *check.also)),
        lost=items[: len(shown_lost)],
        won=items[len(shown_lost) :],
        num_lost=len(lost),
        num_won=len(won),
    )


def _texts(path: Path, ids: Collection[str], most: int) -> dict[str, tuple[str | None, str | None]]:
    """Prompt and answer by item, of a file that has them."""
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

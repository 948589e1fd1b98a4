"""Items that a candidate lost and won, with both answers where they were stored.

The files of results hold ids and values. A file that also has the columns ``answer`` and ``prompt``
(text) has its answers shown side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from align.evidence import Evidence
from align.gate.checks import Check
from align.gate.evaluate import ItemResults, paired
from align.gate.gate import Verdict
from rollouts.errors import KeelError

MAX_CHARACTERS = 600
"""Of an answer or a prompt; the rest is cut, visibly."""


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


def changes(evidence: Evidence, verdict: Verdict, suites: int, items: int) -> tuple[Changes, ...]:
    """What changed on the suites that matter most to a verdict.

    Args:
        suites: most suites: those that failed come first, then the target, then the largest losses.
        items: most items shown as lost, and as won.
    """
    worst: dict[str, Check] = {}
    for check in sorted(verdict.checks, key=_matters):
        worst.setdefault(check.suite, check)
    found = (_changes(evidence, verdict, check, items) for check in list(worst.values())[:suites])
    return tuple(one for one in found if one is not None and (one.num_lost or one.num_won))


def _matters(check: Check) -> tuple[bool, bool, bool, float]:
    return (
        check.role == "shown",
        check.outcome == "passed",
        check.role != "target",
        check.difference,
    )


def _changes(evidence: Evidence, verdict: Verdict, check: Check, items: int) -> Changes | None:
    """None where the results are gone, or the comparator is a rule and no snapshot."""
    hashes = {rule.name: rule.hash for rule in verdict.inputs.suites}
    try:
        paths = [
            evidence.locate(snapshot, hashes[check.suite])
            for snapshot in (verdict.inputs.candidate[check.suite], check.snapshot)
        ]
        candidate, comparator = (ItemResults.load(path) for path in paths)
        values = list(zip(candidate.item_ids, *paired(candidate, comparator), strict=True))
    except (KeelError, KeyError):
        return None
    changed = sorted((after - before, id, before, after) for id, after, before in values)
    lost = [change for change in changed if change[0] < 0]
    won = [change for change in reversed(changed) if change[0] > 0]
    shown = [*lost[:items], *won[:items]]
    after_texts, before_texts = (_texts(path, [id for _, id, _, _ in shown]) for path in paths)

    def item(change: tuple[float, str, float, float]) -> Item:
        _, id, before, after = change
        prompt, now = after_texts.get(id, (None, None))
        return Item(
            id=id,
            before=before,
            after=after,
            prompt=prompt,
            answer_before=before_texts.get(id, (None, None))[1],
            answer_after=now,
        )

    return Changes(
        suite=check.suite,
        against=", ".join((check.against, *check.also)),
        lost=tuple(map(item, lost[:items])),
        won=tuple(map(item, won[:items])),
        num_lost=len(lost),
        num_won=len(won),
    )


def _texts(path: Path, ids: Sequence[str]) -> dict[str, tuple[str | None, str | None]]:
    """Prompt and answer by item, of a file that has them."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    stored = [name for name in ("prompt", "answer") if name in file.schema_arrow.names]
    if not stored:
        return {}
    rows = file.read(columns=["item_id", *stored]).to_pylist()
    wanted = set(ids)
    return {
        row["item_id"]: (_cut(row.get("prompt")), _cut(row.get("answer")))
        for row in rows
        if row["item_id"] in wanted
    }


def _cut(text: object) -> str | None:
    if text is None:
        return None
    whole = str(text)
    return whole if len(whole) <= MAX_CHARACTERS else f"{whole[:MAX_CHARACTERS]} […]"

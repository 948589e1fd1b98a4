"""Record of a round's index in its report: what changed, and which of weights and index did more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from align.data.retrieval.index import ChangeCounts, DocumentIndex

KEY = "index"
"""Key under which a round's report has its index, if the candidate reads documents."""
PARTS = ("weights", "index", "both")
"""Parts of a change of both, in the order in which they are shown; equals go to the later one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartScores:
    """Means on one suite of the parent, and of each part of the round's change on top of it."""

    suite: str
    role: str
    """``target``, ``retention`` or ``shown``, as in the verdict."""
    parent: float
    weights: float
    """The round's weights, reading the parent's documents."""
    index: float
    """The parent's weights, reading the round's documents."""
    both: float

    def gain(self, part: str) -> float:
        """Return what a part of the change gained over the parent."""
        return float(getattr(self, part)) - self.parent


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexRecord:
    """Index that a round's candidate reads."""

    id: str
    documents: int
    change: ChangeCounts | None = None
    """Documents that the round touched; None if it left the index as it was."""
    parts: tuple[PartScores, ...] = ()
    """Scores of weights and index apart; empty if the round changed one of them alone."""

    @property
    def sentence(self) -> str:
        """Sentence about the index, for a person."""
        changes = self.change.sentence if self.change else "as its parent's"
        plural = "" if self.documents == 1 else "s"
        return f"index {self.id[:12]} of {self.documents} document{plural}: {changes}"

    @property
    def lines(self) -> tuple[str, ...]:
        """All that is to be said of the index, a sentence each."""
        return (self.sentence, self.verdict) if self.verdict else (self.sentence,)

    @property
    def verdict(self) -> str:
        """Sentence on which part gained more at the target and kept more elsewhere; empty without parts."""
        words = []
        for role, verb in (("target", "gained"), ("retention", "kept")):
            suites = [scores for scores in self.parts if scores.role == role]
            if not suites:
                continue
            gains = {p: sum(s.gain(p) for s in suites) / len(suites) for p in PARTS}
            most = max(reversed(PARTS), key=lambda part: gains[part])
            shown = ", ".join(f"{part} {gain:+.3f}" for part, gain in gains.items())
            is_equal = len({f"{gain:.3f}" for gain in gains.values()}) == 1
            winner = f"all three {verb} the same" if is_equal else f"{NAMES[most]} {verb} most"
            words.append(f"{winner} ({shown})")
        return "; ".join(words)


NAMES = {"weights": "the weights alone", "index": "the index alone", "both": "both together"}
"""Words for each part of a change."""
_RECORD = TypeAdapter(IndexRecord)


def record_of(
    index: DocumentIndex | None, change: ChangeCounts | None, parts: tuple[PartScores, ...] = ()
) -> IndexRecord | None:
    """Return the record of a candidate's index; None if it reads none."""
    if index is None:
        return None
    return IndexRecord(id=index.id, documents=len(index.documents), change=change, parts=parts)


def index_of_report(report: Mapping[str, Any] | None) -> IndexRecord | None:
    """Read the index in a round's report; None if its candidate reads no documents."""
    entry = (report or {}).get(KEY)
    return None if entry is None else _RECORD.validate_python(entry)


def with_index(report: Mapping[str, Any], record: IndexRecord | None) -> dict[str, Any]:
    """Return a verdict's report with the candidate's index; without one the report itself."""
    if record is None:
        return dict(report)
    return {**report, KEY: _RECORD.dump_python(record, mode="json")}

"""The answer first: what is production, and what was refused or failed and why, a sentence each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from align.gate.evidence import Evidence
from align.gate.summary import reason_of
from align.gate.verdict import Verdict
from align.report.records.history import entries
from align.report.records.window import Window
from align.store.ledger.ledger import RoundRecord
from rollouts.types import SnapshotId

FindingKind = Literal["refused", "observed", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptOut:
    """One round that did not simply pass."""

    index: int
    round: str
    kind: FindingKind
    """``observed``: accepted by a gate that only observes, against the evidence."""
    reason: str

    @property
    def sentence(self) -> str:
        """The round and the reason, as a person says it."""
        if self.kind == "failed":
            return f"{self.round} failed: {self.reason}."
        did = "accepted by an observing gate, although" if self.kind == "observed" else "refused:"
        return f"{self.round} was {did} {self.reason}."


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportAnswer:
    """State of a campaign in sentences."""

    production: SnapshotId
    round: str | None
    """Round that production is from; None for the base."""
    words: str
    """Production's round and snapshot, as a person says it."""
    kept_out: tuple[KeptOut, ...]
    """Rounds that did not simply pass, oldest first."""

    @property
    def sentence(self) -> str:
        """Sentence that names production."""
        return f"Production is {self.words}."

    @property
    def sentences(self) -> tuple[str, ...]:
        """Production, then every round that was kept out."""
        return (self.sentence, *(entry.sentence for entry in self.kept_out))


def answer_of(evidence: Evidence, window: Window | None = None) -> ReportAnswer:
    """Read from a campaign's store what is production and what was kept out.

    Args:
        window: rounds that may be named as kept out; None: all.
    """
    production = evidence.ledger.alias("production") or evidence.base
    rounds = evidence.accepted("policy").items()
    records = {record.index: record for record in evidence.ledger.rounds()}
    kinds: dict[str, FindingKind] = {"failed": "failed", "accepted": "observed"}
    kept_out = []
    for entry in entries(evidence, window):
        record = records.get(-1 if entry.index is None else entry.index)
        if record is not None and not entry.skipped and (reason := _reason(record)):
            kind = kinds.get(entry.state, "refused")
            kept_out.append(
                KeptOut(index=record.index, round=record.name, kind=kind, reason=reason)
            )
    return ReportAnswer(
        production=production,
        round=next((name for name, snapshot in rounds if snapshot == production), None),
        words=evidence.production_words(),
        kept_out=tuple(kept_out),
    )


def _reason(record: RoundRecord) -> str:
    """Return the first reason; of a failure the first line of what it said."""
    report = record.report or {}
    if record.state == "failed":
        lines = str(report.get("error", "")).strip().splitlines() or ["no reason is on record"]
        return lines[0].rstrip(".")[:300]
    if record.state not in ("accepted", "rejected"):
        return ""
    return reason_of(Verdict.to_show(report))

"""Acts of people on a campaign, read from the logs that only grow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from align.gate.evidence import Evidence
from align.schedule.inbox.purge import purges
from align.schedule.skips import skips
from align.store.ledger.amendments import amendments_of, drops_of
from align.store.ledger.baseline import baseline_moves
from align.store.ledger.lineage import by_hand
from rollouts.types import SnapshotId


@dataclass(frozen=True, kw_only=True, slots=True)
class Act:
    """One human act."""

    time: str
    """ISO 8601, UTC."""
    what: str
    reason: str
    """Empty where none was asked for."""


def acts_of(evidence: Evidence) -> tuple[Act, ...]:
    """List what people did by hand, oldest first.

    These are moves of production and of the baseline, removals of a person's data, rounds that were
    skipped or dropped, and amendments of the campaign file.
    """
    acts = (
        *_moves(evidence), *_anchors(evidence), *_purges(evidence), *_skips(evidence),
        *_amendments(evidence), *_drops(evidence),
    )  # fmt: skip
    return tuple(sorted(acts, key=lambda act: act.time))


def _moves(evidence: Evidence) -> Iterator[Act]:
    names = _names(evidence)
    for move in by_hand(evidence.ledger):
        what = f"production moved to {_named(names, move.target)}"
        yield Act(time=move.time, what=what, reason=move.reason)


def _anchors(evidence: Evidence) -> Iterator[Act]:
    names = _names(evidence)
    for move in baseline_moves(evidence.ledger):
        what = f"total budgets count from {_named(names, move.snapshot)}"
        yield Act(time=move.time, what=what, reason=move.reason)


def _purges(evidence: Evidence) -> Iterator[Act]:
    """List purges without the hash of the person's key: short keys are guessed from it, and reports
    travel."""
    for purge in purges(evidence.ledger):
        read = f"; read before by {', '.join(purge.rounds)}" if purge.rounds else ""
        yield Act(
            time=purge.time,
            what=f"a person's data was removed: {purge.num_rows} rows of feedback, "
            f"{purge.num_replayed} replayed prompts{read}",
            reason="",
        )


def _skips(evidence: Evidence) -> Iterator[Act]:
    for skip in skips(evidence.ledger):
        yield Act(
            time=skip.time.isoformat(timespec="milliseconds"),
            what=f"round {skip.round} was skipped by {skip.who} ({skip.schedule}/{skip.key})",
            reason=skip.reason,
        )


def _amendments(evidence: Evidence) -> Iterator[Act]:
    for entry in amendments_of(evidence.ledger):
        what = f"the campaign file was amended by {entry.who or 'somebody'}: {'; '.join(entry.changes)}"
        yield Act(time=entry.time, what=what, reason=entry.reason)


def _drops(evidence: Evidence) -> Iterator[Act]:
    for drop in drops_of(evidence.ledger.database):
        what = f"round {drop.round} was dropped by {drop.who or 'somebody'}"
        yield Act(time=drop.time, what=what, reason=drop.reason)


def _names(evidence: Evidence) -> dict[SnapshotId, str]:
    attempts = (r for r in evidence.ledger.attempts() if r.candidate)
    return {evidence.base: "the base"} | {
        record.candidate: f"the snapshot of round {record.name}"
        for record in attempts
        if record.candidate
    }


def _named(names: dict[SnapshotId, str], snapshot: SnapshotId) -> str:
    return names.get(snapshot, f"snapshot {snapshot[:16]}")

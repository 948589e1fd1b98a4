"""Acts of people on a campaign, read from the logs that only grow."""

from __future__ import annotations

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
    ledger = evidence.ledger
    names = {evidence.base: "the base"} | {
        record.candidate: f"the snapshot of round {record.name}"
        for record in ledger.attempts()
        if record.candidate
    }

    def named(snapshot: SnapshotId) -> str:
        return names.get(snapshot, f"snapshot {snapshot[:16]}")

    acts = [
        Act(time=move.time, what=f"production moved to {named(move.target)}", reason=move.reason)
        for move in by_hand(ledger)
    ]
    for move in baseline_moves(ledger):
        what = f"total budgets count from {named(move.snapshot)}"
        acts.append(Act(time=move.time, what=what, reason=move.reason))
    for purge in purges(ledger):
        # Without the hash of the person's key, from which short keys can be guessed.
        read = f"; read before by {', '.join(purge.rounds)}" if purge.rounds else ""
        what = (
            f"a person's data was removed: {purge.num_rows} rows of feedback, "
            f"{purge.num_replayed} replayed prompts{read}"
        )
        acts.append(Act(time=purge.time, what=what, reason=""))
    for skip in skips(ledger):
        what = f"round {skip.round} was skipped by {skip.who} ({skip.schedule}/{skip.key})"
        time = skip.time.isoformat(timespec="milliseconds")
        acts.append(Act(time=time, what=what, reason=skip.reason))
    for entry in amendments_of(ledger):
        what = f"the campaign file was amended by {entry.who or 'somebody'}: {'; '.join(entry.changes)}"
        acts.append(Act(time=entry.time, what=what, reason=entry.reason))
    for drop in drops_of(ledger.database):
        what = f"round {drop.round} was dropped by {drop.who or 'somebody'}"
        acts.append(Act(time=drop.time, what=what, reason=drop.reason))
    return tuple(sorted(acts, key=lambda act: act.time))

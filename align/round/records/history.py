"""History of prompts, handed on from one accepted round to the next where a draw reads it.

    replay/history-<snapshot>.jsonl

It is written, and its hash recorded, before the verdict that accepts the round is committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.data.replay.buffer import ReplayBuffer
from align.data.replay.history import PromptHistory
from align.round.times.clock import phase
from rollouts.types import SnapshotId

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig, RoundConfig
    from align.round.plan import RoundPlan
    from align.round.session import Session
    from align.store.store import Store

LOST = (
    "restore the file from a backup, or set replay.draw of the rounds to come to balanced or reservoir, "
    "which need no history"
)
"""Remedy for a history that was changed or removed: it does not follow from the data."""


def keeps_history(config: CampaignConfig) -> bool:
    """Tell if any round of the campaign draws by the history of prompts."""
    return any(spec.replay.draw.keeps_history for spec in config.rounds)


def earlier_history(spec: RoundConfig, parent: SnapshotId, session: Session) -> PromptHistory:
    """Return the history that a round begins with; empty if its parent left none.

    Raises:
        EvidenceError: the file that the parent left is missing, or was changed.
    """
    recent = getattr(spec.replay.draw, "recent", PromptHistory.recent)
    path, files = session.store.paths.prompt_history(parent), session.store.files
    is_read = keeps_history(session.config)
    if not is_read or files.hash_of(path) is None or not _is_needed(session):
        return PromptHistory(recent=recent, is_read=is_read)
    earlier = PromptHistory.load(session.store.checked(path, remedy=LOST))
    return PromptHistory(start=earlier.start, known=earlier.known, recent=recent)


def _is_needed(session: Session) -> bool:
    """Tell if a round without a verdict draws by the history; others need no file of it."""
    closed = session.evidence.ledger.closed()
    rounds = session.config.rounds
    return any(spec.replay.draw.keeps_history for spec in rounds if spec.name not in closed)


def check_history(spec: RoundConfig, parent: SnapshotId, store: Store, *, fetch: bool) -> None:
    """Check the history that a round would draw by.

    Args:
        fetch: see `align.round.records.artifacts.earlier_artifacts`.

    Raises:
        EvidenceError: the file that the parent left is missing, or was changed.
    """
    path = store.paths.prompt_history(parent)
    if not spec.replay.draw.keeps_history or store.files.hash_of(path) is None:
        return
    check = store.checked if fetch else store.checked_unfetched
    check(path, remedy=LOST)


@phase("records")
def keep_history(
    plan: RoundPlan, session: Session, candidate: SnapshotId, stored: ReplayBuffer
) -> None:
    """Write the history that rounds after this one begin with, should the candidate be accepted.

    Args:
        stored: prompts of the round that later rounds may replay.
    """
    if not keeps_history(session.config):
        return
    path = session.store.paths.prompt_history(candidate)
    pools = (*stored.entries.values(), *plan.mixture.past.entries.values())
    ids = {prompt.id for prompts in pools for prompt in prompts}
    plan.mixture.history.save(path, plan.spec.steps, ids)
    session.store.files.record([path])

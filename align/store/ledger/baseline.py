"""The snapshot that total budgets count from, and the log of the people who moved it.

It is the campaign's start until a person says otherwise. Nothing in a round moves it: a budget that gave
way by itself would let small losses add up. The log only grows, and the database keeps it so.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, insert, select

from align.store.ledger.ledger import Ledger
from align.store.ledger.tables.core import alias_moves, rounds, snapshots
from align.store.ledger.tables.logs import baseline_log
from rollouts.errors import UserError
from rollouts.types import SnapshotId


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineMove:
    """One human act."""

    seq: int
    previous: SnapshotId
    snapshot: SnapshotId
    """Snapshot that budgets count from since then."""
    reason: str
    decisions: int
    """Rounds that were decided before it."""
    time: str
    """ISO 8601, UTC."""


def baseline_moves(ledger: Ledger) -> list[BaselineMove]:
    """List every move, oldest first."""
    with ledger.database.read() as connection:
        rows = connection.execute(select(baseline_log).order_by(baseline_log.c.seq))
        return [BaselineMove(**row._mapping) for row in rows]


def baseline_of(ledger: Ledger) -> SnapshotId | None:
    """Return the snapshot that budgets count from; None while that is the campaign's start."""
    moves = baseline_moves(ledger)
    return moves[-1].snapshot if moves else None


def move_baseline(ledger: Ledger, snapshot: SnapshotId, reason: str) -> BaselineMove:
    """Count budgets from another snapshot, and say why.

    Args:
        snapshot: one that is or was production, so that the gate has judged it.

    Raises:
        UserError: no reason is given, the snapshot never was production, or it is the baseline already.
    """
    if not reason.strip():
        raise UserError("moving the baseline needs a reason", where="--reason")
    with ledger.database.write() as connection:
        moves = select(alias_moves.c.target).order_by(alias_moves.c.seq)
        blessed = list(connection.scalars(moves))
        if snapshot not in blessed:
            known = connection.scalar(select(snapshots.c.id).where(snapshots.c.id == snapshot))
            raise UserError(
                f"snapshot {snapshot[:16]} {'was never production' if known else 'is not known'}",
                where="SNAPSHOT",
                remedy=f"choose one of {', '.join(id[:16] for id in dict.fromkeys(blessed))}",
            )
        last = select(baseline_log.c.snapshot).order_by(baseline_log.c.seq.desc()).limit(1)
        previous = connection.scalar(last) or blessed[0]
        if previous == snapshot:
            raise UserError(f"budgets count from {snapshot[:16]} already", where="SNAPSHOT")
        decided = rounds.c.state.in_(("accepted", "rejected"))
        decisions = connection.scalar(select(func.count()).select_from(rounds).where(decided))
        row = connection.execute(
            insert(baseline_log)
            .values(
                previous=previous,
                snapshot=snapshot,
                reason=reason.strip(),
                decisions=decisions,
                time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            )
            .returning(baseline_log)
        ).one()
        return BaselineMove(**row._mapping)

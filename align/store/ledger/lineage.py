"""Lineage of accepted snapshots, and the moves of production that are allowed by hand."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select

from align.store.ledger.ledger import AliasMove, Ledger, RoundRecord
from align.store.ledger.tables.core import alias_moves
from rollouts.errors import UserError, nearest
from rollouts.types import SnapshotId


def lineage(accepted: Sequence[RoundRecord], snapshot: SnapshotId | None) -> frozenset[SnapshotId]:
    """Return the candidates of accepted rounds that a snapshot goes back to, itself among them.

    Args:
        accepted: accepted rounds.
    """
    parents = {record.candidate: record.parent for record in accepted}
    ancestors: set[SnapshotId] = set()
    while snapshot is not None and snapshot in parents and snapshot not in ancestors:
        ancestors.add(snapshot)
        snapshot = parents[snapshot]
    return frozenset(ancestors)


def by_hand(ledger: Ledger) -> list[AliasMove]:
    """List moves of production that no verdict caused: to a snapshot that it had named before."""
    with ledger.database.read() as connection:
        targets = connection.scalars(select(alias_moves.c.target)).all()
    if len(set(targets)) == len(targets):
        return []
    earlier: set[SnapshotId] = set()
    moves = []
    for move in ledger.alias_moves():
        if move.target in earlier:
            moves.append(move)
        earlier.add(move.target)
    return moves


def accepted_named(ledger: Ledger, to: str) -> RoundRecord:
    """Find the accepted round of this name, or with a snapshot whose id begins with it (8 digits at
    least).

    Raises:
        UserError: there is no such round, it makes no policy, or more than one fits.
    """
    accepted = [r for r in ledger.attempts() if r.state == "accepted" and r.candidate]
    moved = {move.target for move in ledger.alias_moves()}
    policies = [r for r in accepted if r.candidate in moved]
    matches = [
        r for r in policies if r.name == to or (len(to) >= 8 and (r.candidate or "").startswith(to))
    ]
    if len(matches) == 1:
        return matches[0]
    names = [record.name for record in policies]
    raise UserError(
        f"{to!r} names {'no' if not matches else 'more than one'} snapshot that the gate accepted",
        where="--to",
        cause="production only ever names snapshots that a round was accepted with",
        remedy=nearest(to, names) if names else "no round was accepted yet",
    )


def move_production(ledger: Ledger, to: str, *, back: bool, reason: str) -> RoundRecord:
    """Move production to another accepted snapshot, back to one it is made of or forward again.

    Rounds that it is moved behind count as rejected from then on: later rounds start from the snapshot,
    and are not held to what came after it.

    Raises:
        UserError: no such snapshot, it is production already, or it lies the other way.
        SnapshotError: its files were collected.
        StoreError: the campaign is running.
    """
    if not reason.strip():
        raise UserError("a move of production needs a reason", where="--reason")
    with ledger.lease("keel rollback" if back else "keel promote"):
        target, production = accepted_named(ledger, to), ledger.alias("production")
        if (gone := ledger.collections.find(target.candidate or "")) is not None:
            raise gone.error()
        accepted = [r for r in ledger.attempts() if r.state == "accepted"]
        if target.candidate == production:
            raise UserError(f"production is the snapshot of round {target.name!r} already")
        if (target.candidate in lineage(accepted, production)) != back:
            way, other = ("back", "promote") if back else ("forward", "rollback")
            raise UserError(
                f"from production one does not come {way} to the snapshot of round {target.name!r}",
                where="--to",
                remedy=f"move it with keel {other}, or see keel rounds list for the others",
            )
        assert target.candidate is not None and production is not None
        ledger.move_production(target.candidate, production, reason.strip())
    return target

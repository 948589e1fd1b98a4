"""Rounds that fell due, as the ledger holds them: each as the campaign file stated it then."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Select, and_, not_, select

from align.config.campaign import RoundConfig
from align.config.messages.mistakes import mistakes_of
from align.errors import StoreError
from align.settings import Places
from align.store.database.database import Database
from align.store.ledger.tables.core import rounds
from align.store.ledger.tables.due import due_claims
from align.store.ledger.tables.logs import due_skips
from rollouts.machine.collector import without_collector


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimedRound:
    """A round that fell due, as it was stated then."""

    schedule: str
    key: str
    reason: str
    claimed: datetime
    spec: RoundConfig
    """Configuration of the round under its own name, without a schedule."""


_COLUMNS = [
    due_claims.c[name] for name in ("schedule", "due_key", "reason", "claimed", "round", "spec")
]


def claimed_rounds(database: Database, places: Places | None = None) -> list[ClaimedRound]:
    """Return every round that fell due, in order, without those skipped before the campaign planned them.

    Args:
        places: folders that the paths in them start from; they are stored as the campaign file states them.
    """
    read: dict[tuple[str, ...], RoundConfig] = {}
    with database.read() as connection, without_collector():
        rows = connection.execute(_claims(*_COLUMNS)).all()
        return [_claimed(tuple(row), places, read) for row in rows]


def open_claimed_rounds(database: Database, places: Places | None = None) -> list[ClaimedRound]:
    """Return the rounds that fell due and are not over, in order."""
    decided = select(rounds.c.name).where(rounds.c.state.in_(("accepted", "rejected")))
    over = due_claims.c.round.in_(decided) | due_claims.c.round.in_(select(due_skips.c.round))
    with database.read() as connection:
        rows = connection.execute(_claims(*_COLUMNS).where(not_(over))).all()
    return [_claimed(tuple(row), places, {}) for row in rows]


def claimed_names(database: Database) -> frozenset[str]:
    """Name the rounds of `claimed_rounds`."""
    with database.read() as connection:
        return frozenset(connection.scalars(_claims(due_claims.c.round)))


def _claims(*columns: Any) -> Select[Any]:
    """Select rounds that fell due, in order, without those skipped before the campaign planned them."""
    never = and_(
        due_claims.c.round.in_(select(due_skips.c.round)),
        due_claims.c.round.not_in(select(rounds.c.name)),
    )
    return select(*columns).where(not_(never)).order_by(due_claims.c.seq)


def _claimed(
    row: tuple[Any, ...], places: Places | None, read: dict[tuple[str, ...], RoundConfig]
) -> ClaimedRound:
    """Restore a round that fell due.

    Args:
        read: rounds by their JSON around the name, since most of a template's are alike.
    """
    schedule, key, reason, claimed, name, text = row
    around = tuple(text.split(json.dumps(name)))
    spec = read.get(around) if len(around) == 2 else None
    if spec is None:
        spec = read[around] = _as_read(name, json.loads(text), places)
    return ClaimedRound(
        schedule=schedule,
        key=key,
        reason=reason,
        claimed=moment_of(claimed),
        spec=spec if spec.name == name else spec.model_copy(update={"name": name}),
    )


def _as_read(name: str, stated: Mapping[str, Any], places: Places | None) -> RoundConfig:
    """Restore a round as it was stated; settings that are new in this version have their default."""
    try:
        return RoundConfig.model_validate(stated, context=places)
    except ValidationError as error:
        raise StoreError(
            mistakes_of(error, RoundConfig, stated)[0].line,
            where=f"round {name}, as it fell due",
            cause="another version of Keel wrote it, and this one cannot read it",
            remedy="go on with that version",
        ) from None


def moment_of(text: str) -> datetime:
    return datetime.fromisoformat(text)

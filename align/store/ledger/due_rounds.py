"""Rounds that fell due, as the ledger holds them: each as the campaign file stated it then."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import and_, not_, select

from align.config.campaign import RoundConfig
from align.config.messages.mistakes import mistakes_of
from align.errors import StoreError
from align.settings import Places
from align.store.database.database import Database
from align.store.ledger.tables.core import rounds
from align.store.ledger.tables.due import due_claims
from align.store.ledger.tables.logs import due_skips


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimedRound:
    """A round that fell due, as it was stated then."""

    schedule: str
    key: str
    reason: str
    claimed: datetime
    spec: RoundConfig
    """Configuration of the round under its own name, without a schedule."""


def claimed_rounds(database: Database, places: Places | None = None) -> list[ClaimedRound]:
    """Return every round that fell due, in order, without those skipped before the campaign planned them.

    Args:
        places: folders that the paths in them start from; they are stored as the campaign file states them.
    """
    never = and_(
        due_claims.c.round.in_(select(due_skips.c.round)),
        due_claims.c.round.not_in(select(rounds.c.name)),
    )
    query = select(due_claims).where(not_(never)).order_by(due_claims.c.seq)
    with database.read() as connection:
        records = connection.execute(query).all()
    return [
        ClaimedRound(
            schedule=row.schedule,
            key=row.due_key,
            reason=row.reason,
            claimed=moment_of(row.claimed),
            spec=_as_read(row.round, json.loads(row.spec), places),
        )
        for row in records
    ]


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

"""Settings of a campaign as its store has them, for readers without the campaign file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select

from align.config.campaign import CampaignConfig
from align.config.store import StoreSettings
from align.store.changes.earlier_versions import as_then
from align.store.database.database import Database
from align.store.ledger.amendments import stored_content
from align.store.ledger.due_rounds import claimed_names
from align.store.ledger.tables.due import due_claims
from align.store.store import known_ledger


def config_in_store(places: StoreSettings) -> CampaignConfig | None:
    """Return the campaign that was opened in a store; None if there is none.

    Args:
        places: locations of the store and its ledger; the name counts for nothing.
    """
    ledger = known_ledger(places)
    content = {} if ledger is None else stored_content(ledger.database)
    if not content:
        return None
    locations = places.model_dump(exclude={"name"})
    assert ledger is not None
    content["rounds"] = _with_settings(content["rounds"], ledger.database)
    return CampaignConfig.model_validate({**as_then(content), **locations})


def _with_settings(
    rounds: Sequence[Mapping[str, Any]], database: Database
) -> list[Mapping[str, Any]]:
    """Return the rounds whose settings the content has; where all fell due, the last of those.

    The others come with their claims when the campaign is settled.
    """
    due = claimed_names(database)
    plain = [spec for spec in rounds if spec["name"] not in due]
    if plain or not due:
        return plain
    query = select(due_claims.c.spec).order_by(due_claims.c.seq.desc()).limit(1)
    with database.read() as connection:
        return [json.loads(connection.execute(query).scalar_one())]

"""Settings of a campaign as its store has them, for readers without the campaign file."""

from __future__ import annotations

from align.config.campaign import CampaignConfig
from align.config.store import StoreSettings
from align.store.changes.earlier_versions import as_then
from align.store.ledger.amendments import stored_content
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
    return CampaignConfig.model_validate({**as_then(content), **locations})

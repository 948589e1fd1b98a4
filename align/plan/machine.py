"""What this machine makes of a campaign, for people who check one before they run it."""

from __future__ import annotations

from align.config import CampaignConfig
from align.memory.settled import settled_lines
from align.plan.ledger_copy import ledger_copy
from align.schedule.expand import expanded


def machine_lines(config: CampaignConfig) -> list[str]:
    """What ``auto`` settings mean here, and what is slow; the store is read and not written."""
    with ledger_copy(config) as ledger:
        return list(settled_lines(config, expanded(config, ledger)))

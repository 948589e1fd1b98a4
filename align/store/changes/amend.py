"""``keel campaign amend``: record what changed in a campaign file, who changed it and why."""

from __future__ import annotations

from align.config.campaign import CampaignConfig
from align.store.changes.settle import settle
from align.store.ledger.amendments import user_name
from align.store.store import begun_ledger
from align.store.stored_config import as_read
from rollouts.errors import UserError


def amend(config: CampaignConfig, *, reason: str, dry_run: bool = False) -> tuple[str, ...]:
    """Record what the file has changed since the store knew it; return one sentence per change.

    Args:
        dry_run: write nothing.

    Raises:
        UserError: there is no campaign in the store yet.
        StoreError: committed verdicts rest on what has changed, or the campaign is running.
    """
    ledger = begun_ledger(config)
    if ledger is None:
        raise UserError(
            "there is no campaign in this store yet, so nothing to amend",
            where=config.store if config.is_remote else str(config.folder),
            remedy="start it with keel run",
        )
    settled = settle(config, ledger)
    settled.check()
    if dry_run or not settled.comparison.changes:
        return settled.comparison.sentences
    stated = settled.stated
    with ledger.claim("keel campaign amend"):
        return ledger.open_campaign(
            stated.name,
            stated.content(),
            stated.hash(),
            read=as_read,
            who=user_name(),
            reason=reason,
            quiet=settled.due,
        ).sentences

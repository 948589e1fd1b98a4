"""``keel campaign amend``: record what changed in a campaign file, who changed it and why."""

from __future__ import annotations

from align.config.campaign import CampaignConfig
from align.store.changes.earlier_versions import as_read
from align.store.changes.settle import settle
from align.store.database.database import Database
from align.store.ledger.amendments import Drop, drop_round, dropped_for_good, drops_of, user_name
from align.store.ledger.campaign_row import committed_in
from align.store.store import begun_ledger, known_ledger, open_store
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
    with ledger.lease("keel campaign amend"):
        return ledger.open_campaign(
            stated.name,
            settled.content,
            settled.content_hash,
            read=as_read,
            who=user_name(),
            reason=reason,
            quiet=settled.due,
        ).sentences


def dropped_lines(config: CampaignConfig, database: Database) -> list[str]:
    """Say of every round that was dropped and still stands in the campaign file that it is not run."""
    names = {spec.name for spec in config.rounds}
    return [
        f"{drop.sentence}; it is not run, though the file names it (another name makes it a new round)"
        for drop in drops_of(database)
        if drop.stays and drop.round in names
    ]


def drop(config: CampaignConfig, name: str, *, reason: str) -> Drop:
    """Drop a round: the ledger keeps its attempts; its checkpoints and staging folders are deleted.

    Metrics and rollout tables of its attempts stay: they say why it was dropped.

    Raises:
        UserError: there is no such round, it has a verdict, or it fell due by a schedule.
        StoreError: committed verdicts do not allow what else the file changed.
        StoreBusy: the campaign is running.
    """
    ledger = known_ledger(config)
    if ledger is None:
        raise UserError(
            f"the store has no round {name!r}: nothing has happened in it yet",
            where="ROUND",
            remedy="take the round out of the campaign file",
        )
    with ledger.database.read() as connection:
        known = {slot.name for slot in committed_in(connection).slots}
    known |= dropped_for_good(ledger.database)
    if name in (spec.name for spec in config.rounds) and name not in known:
        amend(config, reason=reason)  # The file alone knows it: it gets a place, to be given up.
    store = open_store(config, ledger)
    with ledger.lease("keel rounds drop"):
        dropped = drop_round(ledger, name, who=user_name(), reason=reason)
        store.forget_checkpoints(dropped.index, name)
        store.snapshots.clean()
    return dropped

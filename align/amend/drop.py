"""``keel rounds drop``: give up a round without a verdict and delete its checkpoints."""

from __future__ import annotations

from shutil import rmtree

from align.config import CampaignConfig
from align.memory.amendments import Drop, drop_round, user_name
from align.memory.snapshots import SnapshotStore
from align.stores import known_ledger, open_mirror
from rollouts.errors import UserError


def drop(config: CampaignConfig, name: str, *, reason: str) -> Drop:
    """Drop a round: the ledger keeps its attempts; its checkpoints and staging folders are deleted.

    Metrics and rollout tables of its attempts stay: they say why it was dropped.

    Raises:
        UserError: there is no such round, it has a verdict, or it fell due by a schedule.
        StoreBusy: the campaign is running.
    """
    ledger = known_ledger(config)
    if ledger is None:
        raise UserError(
            f"the store has no round {name!r}: nothing has happened in it yet",
            where="ROUND",
            remedy="take the round out of the campaign file",
        )
    mirror = open_mirror(config)
    with ledger.claim("keel rounds drop"):
        dropped = drop_round(ledger, name, who=user_name(), reason=reason)
        for path in (config.folder / "rounds").glob(f"{dropped.index:02d}-{name}/checkpoint*"):
            rmtree(path, ignore_errors=True)
            mirror.trim(path)
        SnapshotStore(config.folder, mirror.remote).clean()
    return dropped

"""Snapshots of a campaign: ``STORE#ROUND``, where STORE is the store's folder or the campaign's file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy import select

from align.config.campaign import CampaignConfig
from align.config.file import load_campaign
from align.config.messages.mistakes import mistakes_of
from align.config.store import LEDGER, sqlite_url
from align.gate.evidence import Evidence, stored_evidence
from align.judge.models.base import Named
from align.judge.models.local import LocalModel, open_folder
from align.report.export.export import find, refuse_bank
from align.store.changes.earlier_versions import as_then
from align.store.ledger.ledger import Ledger
from align.store.ledger.tables.core import campaigns
from align.store.paths import StorePaths
from align.store.store import Store
from rollouts.errors import UserError

SIGN = "#"
"""Sign between a store and the name of a snapshot in it."""
PRODUCTION = "production"


def is_snapshot(name: str) -> bool:
    """Tell ``STORE#ROUND``, and the folder of a store, which stands for its production."""
    store, sign, _ = name.rpartition(SIGN)
    path = Path(store if sign else name).expanduser()
    return bool(sign and store and path.exists()) or StorePaths(path).ledger.is_file()


def open_snapshot(argument: Named) -> LocalModel:
    """Open a snapshot by the name of its round, ``production``, ``base``, or its id or the id's beginning.

    Raises:
        UserError: no store there, or no such snapshot in it.
        SnapshotError: the snapshot is damaged.
    """
    store, sign, which = argument.name.rpartition(SIGN)
    path = Path(store if sign else argument.name).expanduser()
    evidence = _evidence(path)
    snapshots = evidence.store.snapshots
    snapshot, hold = snapshots.hold(find(evidence, which if sign else PRODUCTION))
    refuse_bank(snapshot, which if sign else PRODUCTION, argument.name)
    holds, below = [hold], None
    if snapshot.kind == "adapter" and (base := snapshot.manifest.provenance.base):
        opened, hold = snapshots.hold(base)
        below = opened.path
        holds.append(hold)
    return replace(open_folder(argument, snapshot.path, below), holds=tuple(holds))


def _evidence(path: Path) -> Evidence:
    if path.is_file():
        return stored_evidence(load_campaign(path).config)
    if not StorePaths(path).ledger.is_file():
        raise UserError(
            f"{str(path)!r} is no store: it holds no {LEDGER}",
            where=str(path),
            remedy="name the folder of a campaign's store, or the campaign's file where its ledger lies "
            "elsewhere",
        )
    ledger = Ledger(sqlite_url(StorePaths(path).ledger))
    with ledger.database.read() as connection:
        content = connection.scalar(select(campaigns.c.config))
    if content is None or ledger.alias(PRODUCTION) is None:
        raise UserError("no campaign has begun in this store yet", where=str(path))
    try:
        stored = {**as_then(json.loads(content)), "store": str(path)}
        config = CampaignConfig.model_validate(stored)
    except ValidationError as error:
        raise UserError(
            "the store's campaign is not valid in this version of Keel",
            where=str(path),
            cause=f"another version wrote it: {mistakes_of(error, CampaignConfig, stored)[0].line}",
            remedy="name the campaign's file in place of the store",
        ) from error
    return Evidence(store=Store(path, ledger), config=config)

"""Base that a store began with: its files by hash, its tokenizer, and the suites measured in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from align.config.campaign import CampaignConfig
from align.errors import KeelError
from align.store.ledger.copy import ledger_to_read
from align.store.paths import StorePaths
from align.store.snapshots.manifest import HELD_OUT, Manifest
from align.store.store import store_to_read


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredBase:
    """First snapshot of a store that a campaign has begun in."""

    manifest: Manifest
    folder: Path
    """Folder of the snapshot, unverified; it does not exist yet if the store's cache is empty."""
    suite_hashes: frozenset[str]
    """Hashes of the suites with results in this store."""
    trained_on: Mapping[str, Mapping[str, str]]
    """Hashes of the data that each accepted round learnt from, by round and kind of pool."""

    @property
    def holds_out_windows(self) -> bool:
        """True if the store began when windows of texts were held out, not whole documents."""
        return self.manifest.provenance.extra.get(HELD_OUT) != "documents"

    def readable(self, otherwise: Path) -> Path:
        """Return the folder to read the tokenizer from: the store's if it is here, else ``otherwise``."""
        return self.folder if self.folder.is_dir() else otherwise


def stored_base(config: CampaignConfig) -> StoredBase | None:
    """Return the base in the campaign's store, read from a copy of its ledger.

    None where there is no store yet, or it is out of reach: whoever goes on to run opens it and says why.
    """
    try:
        with ledger_to_read(config) as ledger:
            if ledger.alias("production") is None:
                return None
            base = ledger.first_production()
            measured = ledger.measured_suites()
            names = {spec.name for spec in config.rounds}
            rounds = [r for r in ledger.rounds() if r.name in names]
            accepted = [r for r in rounds if r.state == "accepted" and r.candidate]
            snapshots = store_to_read(config, ledger).snapshots
            manifest = snapshots.manifest(base)
            trained_on = {
                record.name: snapshots.manifest(record.candidate).provenance.data_hashes
                for record in accepted
                if record.candidate is not None
            }
    except KeelError:
        return None
    return StoredBase(
        manifest=manifest,
        folder=StorePaths(config.folder.absolute()).snapshot(base),
        suite_hashes=measured,
        trained_on=trained_on,
    )

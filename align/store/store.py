"""Opens what a campaign file says of its places: the ledger, and the far side of a store with a URL.

With a URL the local folder is a cache of the store: snapshots are fetched when they are opened,
everything else when the store is. A machine with an empty cache, the same ledger and the same URL goes on
where another one stopped.
"""

from __future__ import annotations

from sqlalchemy.engine import make_url

from align.config.store import StoreSettings
from align.store.database.database import holds_ledger
from align.store.database.postgres import shown
from align.store.ledger.ledger import Ledger
from align.store.mirror import Mirror
from align.store.remote import Remote


def open_ledger(config: StoreSettings) -> Ledger:
    """Open the campaign's ledger; make it if there is none.

    Raises:
        UserError: the URL is none, or not given where it should be.
        StoreError: the database cannot be reached, or holds something else.
    """
    return Ledger(config.ledger_url)


def known_ledger(config: StoreSettings) -> Ledger | None:
    """Open the ledger if there is one; make none. Feedback and claims lie there before any round has
    run."""
    return open_ledger(config) if holds_ledger(config.ledger_url) else None


def begun_ledger(config: StoreSettings) -> Ledger | None:
    """Open the ledger of a campaign that ran before, and so has a base; None where none did."""
    ledger = known_ledger(config)
    return None if ledger is None or ledger.alias("production") is None else ledger


def open_mirror(config: StoreSettings) -> Mirror:
    """Open the two sides of the store; of a local one there is only one.

    Raises:
        UserError: no such store, no credentials, or its package is missing.
        RunError: it cannot be reached.
    """
    if not config.is_remote:
        return Mirror(config.folder)
    config.folder.mkdir(parents=True, exist_ok=True)
    return Mirror(config.folder, Remote(config.store, config.store_options))


def ledger_place(config: StoreSettings) -> str:
    """Return where the ledger lies, for people: no password."""
    return shown(make_url(config.ledger_url)) if config.ledger else str(config.folder / "ledger.db")

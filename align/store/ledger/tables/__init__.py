"""Tables of a store's database. Importing one of them imports all, so that a new store has every table."""

from align.store.ledger.tables import core, due, inbox, logs, verdicts

__all__ = ["core", "due", "inbox", "logs", "verdicts"]

"""Which rows of the preference inbox every round read."""

from __future__ import annotations

from align.store.ledger.ledger import Ledger
from align.store.ledger.reservations import Take, all_takes

STATES = {
    "held": "held until its verdict",
    "used": "used by it",
    "returned": "given back to the next round, since it was rejected",
}


def takes_of(ledger: Ledger) -> dict[str, Take]:
    """By round; a round that learns from no inbox has none."""
    with ledger.database.read() as connection:
        return {take.round: take for take in all_takes(connection)}


def told(take: Take) -> str:
    """For a person."""
    return (
        f"{take.num_rows:,} rows of inbox://{take.stream}, of the numbers {take.above + 1:,} to "
        f"{take.newest:,}: {STATES[take.state]}"
    )

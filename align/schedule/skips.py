"""A person says that a round which is due shall not run this time, because of bad data, say.

Its due key is spent, so nobody claims it again, and so is its number. What it would have read is not: the
rows wait for the next round, which falls due as its schedule says. The record of who, when and why only
grows.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, insert, select, update

from align.config.campaign import CampaignConfig
from align.errors import StaleAttempt
from align.schedule.claims import Dues, iso, skips_of
from align.schedule.due import AT_ONCE, Due, History, Skip, Tick
from align.store.ledger.campaign_row import INTERRUPTED
from align.store.ledger.ledger import Ledger
from align.store.ledger.reservations import release
from align.store.ledger.tables.core import rounds
from align.store.ledger.tables.logs import due_skips
from rollouts.errors import UserError, nearest


def skips(ledger: Ledger) -> tuple[Skip, ...]:
    """List every due key that a person passed over, in order."""
    with ledger.database.read() as connection:
        return skips_of(connection)


def skip_round(
    ledger: Ledger, config: CampaignConfig, name: str, *, who: str, reason: str, now: datetime
) -> Skip:
    """Pass over what is due of a schedule.

    An attempt at it whose process is gone counts as failed. One that runs is not touched.

    Args:
        name: of the schedule, or of the round that fell due.

    Raises:
        UserError: it is not due; says why.
        StoreBusy: the round is running.
    """
    dues = Dues(ledger.database, config)
    with ledger.database.read() as connection:
        begun = _begun(connection, _named(name, config, *dues.look_within(connection, now)))
    alone = ledger.lease("keel schedule skip") if begun else nullcontext()
    with alone, ledger.database.write() as connection:
        due = _named(name, config, *dues.look_within(connection, now))
        if not begun and _begun(connection, due):
            raise StaleAttempt(
                f"round {due.round!r} has begun at this moment",
                remedy="stop its run, then skip it again",
            )
        dues.keep_claimed(connection, due, now)
        ended = {"state": "failed", "report": json.dumps(INTERRUPTED), "ended": iso(now)}
        connection.execute(update(rounds).where(_under_way(due)).values(ended))
        release(connection, due.round)
        values = {"who": who, "reason": reason.strip()}
        key = {"schedule": due.schedule, "due_key": due.key, "round": due.round}
        connection.execute(insert(due_skips).values(**key, **values, time=iso(now)))
        return skips_of(connection)[-1]


def _named(name: str, config: CampaignConfig, tick: Tick, history: History) -> Due:
    """Find what is due under this name: of a schedule, or of a round that is without a verdict.

    Raises:
        UserError: nothing is.
    """
    for due in tick.due:
        if name in (due.schedule, due.round) and due.key != AT_ONCE:
            return due
    for claim in history.open:  # Its rows are gone.
        if name in (claim.schedule, claim.round):
            known = {"schedule": claim.schedule, "key": claim.key, "round": claim.round}
            return Due(**known, reason="fell due", claimed=True)
    claims = {claim.round for claim in history.claims}
    why_not = {waiting.schedule: f"is not due: {waiting.why}" for waiting in tick.waits}
    why_not |= {round: "has its verdict" for round in claims if round in history.verdicts}
    why_not |= dict.fromkeys(history.skipped, "was skipped before")
    plain = [spec.name for spec in config.rounds if not spec.scheduled]
    if name in plain:
        what, remedy = "has no schedule", "take it out of the campaign file, or give it one"
    elif name in why_not:
        what, remedy = why_not[name], "keel schedule next shows what is due"
    else:
        what, remedy = "is not known", nearest(name, list(why_not))
    raise UserError(f"round {name!r} {what}", where="ROUND", remedy=remedy)


def _begun(connection: Connection, due: Due) -> bool:
    """Tell if an attempt at the round is under way, as far as the ledger knows."""
    query = select(rounds.c.attempt).where(_under_way(due))
    return connection.scalar(query) is not None


def _under_way(due: Due) -> ColumnElement[bool]:
    return and_(rounds.c.name == due.round, rounds.c.state.in_(("running", "gating")))

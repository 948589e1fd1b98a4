"""Changes that people made to a campaign after its store was begun: amendments, drops, changed code.

Every log only grows; the database keeps it so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from getpass import getuser
from typing import Any

from sqlalchemy import insert, select, update

from align.store.database.database import Database
from align.store.ledger.campaign_row import committed_in, vacate
from align.store.ledger.ledger import Ledger
from align.store.ledger.tables.core import campaigns
from align.store.ledger.tables.due import due_claims
from align.store.ledger.tables.logs import (
    amendments,
    code_files,
    pinned_settings,
    round_drops,
)
from rollouts.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True, slots=True)
class Amendment:
    """One amendment of a campaign that had begun."""

    seq: int
    who: str
    reason: str
    """Reason that the person gave; empty if a run found the file changed."""
    changes: tuple[str, ...]
    """Sentences such as ``rounds.sort.steps: 45 -> 60``."""
    decisions: int
    """Number of rounds that were decided before the amendment."""
    time: str
    """Time of the amendment, ISO 8601, UTC."""

    @property
    def sentence(self) -> str:
        """Sentence for people: who changed what, when and why."""
        why = f" ({self.reason})" if self.reason else ""
        return (
            f"amended {self.time[:16]} by {self.who or 'somebody'}{why}: {'; '.join(self.changes)}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Drop:
    """A round without a verdict that was given up."""

    index: int
    round: str
    stays: bool
    """True if the campaign file may still name the round, which then does not run."""
    who: str
    reason: str
    time: str
    """Time of the drop, ISO 8601, UTC."""

    @property
    def sentence(self) -> str:
        """Sentence for people: who dropped the round, when and why."""
        why = f": {self.reason}" if self.reason else ""
        return f"{self.round} was dropped {self.time[:16]} by {self.who or 'somebody'}{why}"


def amendments_of(ledger: Ledger) -> list[Amendment]:
    """Return all amendments, oldest first."""
    columns = [column for column in amendments.c if column.name != "config_hash"]
    with ledger.database.read() as connection:
        rows = connection.execute(select(*columns).order_by(amendments.c.seq)).all()
    return [
        Amendment(**{**row._mapping, "changes": tuple(json.loads(row.changes))}) for row in rows
    ]


def drops_of(database: Database) -> list[Drop]:
    """Return all drops, oldest first."""
    columns = [column for column in round_drops.c if column.name != "seq"]
    with database.read() as connection:
        rows = connection.execute(select(*columns).order_by(round_drops.c.seq)).all()
    return [Drop(**{**row._mapping, "stays": bool(row.stays)}) for row in rows]


def dropped_for_good(database: Database) -> frozenset[str]:
    """Name the rounds that a person dropped; they do not run, even if the file names them."""
    return frozenset(drop.round for drop in drops_of(database) if drop.stays)


def pins_of(database: Database) -> dict[str, Mapping[str, Any]]:
    """Return settings of decided rounds and judged suites that the file no longer gives, by name."""
    with database.read() as connection:
        rows = connection.execute(select(pinned_settings.c.name, pinned_settings.c.spec)).all()
    return {row.name: json.loads(row.spec) for row in rows}


def stored_content(database: Database) -> dict[str, Any]:
    """Return the campaign's content as the store holds it; empty before the campaign has begun."""
    with database.read() as connection:
        content = connection.scalar(select(campaigns.c.config))
    return {} if content is None else dict(json.loads(content))


def drop_round(ledger: Ledger, name: str, *, who: str, reason: str) -> Drop:
    """Give up a round that has no verdict; its ledger index stays unused. The caller holds the lease.

    An attempt whose process is gone counts as failed. Attempts stay on record.

    Raises:
        UserError: no reason, no such round, it has a verdict, or it fell due.
    """
    if not reason.strip():
        raise UserError("dropping a round needs a reason", where="--reason")
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    with ledger.database.write() as connection:
        slots = {slot.name: slot for slot in committed_in(connection).slots}
        if name not in slots:
            raise UserError(
                f"the store has no round {name!r}",
                where="ROUND",
                remedy=f"{nearest(name, list(slots))}; a round that was never planned is taken out of the "
                "campaign file",
            )
        slot = slots[name]
        if slot.decided:
            raise UserError(
                f"round {name!r} was {slot.state}, and a verdict is final",
                where="ROUND",
                remedy="keel rollback takes production back to what was before it"
                if slot.state == "accepted"
                else "nothing of it is in production; it stays on record",
            )
        if connection.scalar(select(due_claims.c.seq).where(due_claims.c.round == name)):
            raise UserError(
                f"round {name!r} fell due by a schedule",
                where="ROUND",
                remedy=f"pass it over: keel schedule skip CAMPAIGN {name}",
            )
        vacate(connection, slot, who=who, reason=reason, now=now, stays=True)
        stored = connection.execute(select(campaigns.c.config)).scalar_one()
        content = json.loads(stored)
        content["rounds"] = [spec for spec in content["rounds"] if spec["name"] != name]
        # No file has this hash, so that the next one is compared.
        values = {"config": json.dumps(content, sort_keys=True), "config_hash": ""}
        connection.execute(update(campaigns).values(**values))
    return next(drop for drop in reversed(drops_of(ledger.database)) if drop.round == name)


def note_code(database: Database, files: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Record which user code runs now.

    Args:
        files: sha256 by name, as the campaign file has it.

    Returns:
        The old and the new sha256 of files that have changed since they were written down last.
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    changed: dict[str, tuple[str, str]] = {}
    with database.read() as connection:
        rows = connection.execute(select(code_files).order_by(code_files.c.seq)).all()
    known = {row.name: row.sha256 for row in rows}
    new = {name: digest for name, digest in files.items() if known.get(name) != digest}
    if new:
        with database.write() as connection:
            for name, digest in new.items():
                connection.execute(insert(code_files).values(name=name, sha256=digest, time=now))
                if name in known:
                    changed[name] = (known[name], digest)
    return changed


def note_amendment(ledger: Ledger, changes: list[str], *, who: str, reason: str = "") -> None:
    """Add sentences to the record of amendments."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    decisions = sum(record.state in ("accepted", "rejected") for record in ledger.rounds())
    with ledger.database.write() as connection:
        connection.execute(
            insert(amendments).values(
                who=who,
                reason=reason,
                changes=json.dumps(changes),
                decisions=decisions,
                config_hash="",
                time=now,
            )
        )


def user_name() -> str:
    """Return the name of the person at the terminal, or their user id if it has no name."""
    try:
        return getuser()
    except (KeyError, OSError):
        return str(os.getuid())

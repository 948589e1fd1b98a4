"""Row of the campaign in its store: created, continued, amended, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from align.errors import StoreError
from align.store.changes.compare import CampaignComparison, Refusal, compare
from align.store.changes.locks import Committed, Slot
from align.store.ledger.digests import judged_names
from align.store.ledger.reservations import release
from align.store.ledger.tables.core import alias_moves, campaigns, rounds
from align.store.ledger.tables.logs import amendments, pinned_settings, round_drops

SHOWN = 20
"""Changes listed in an error; of more than that, the number is given."""
INTERRUPTED = {"reason": "interrupted"}
"""Report of an attempt whose runner never came back."""

Read = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Function from a stored configuration, perhaps of an older version, to its form in this one."""


def open_campaign_row(
    connection: Connection,
    name: str,
    config: Mapping[str, Any],
    config_hash: str,
    *,
    where: str,
    now: str,
    read: Read = dict,
    who: str = "",
    reason: str = "",
    quiet: Collection[str] = (),
) -> CampaignComparison:
    """Create, continue or amend the campaign, and give its rounds their indices.

    Args:
        read: applied to the stored configuration before it is compared.
        who: person or process that amends the campaign, and ``reason`` why, for the record.
        quiet: rounds whose coming is no amendment.

    Raises:
        StoreError: another campaign, or a change of what committed verdicts rest on; nothing is written.
    """
    new = json.loads(json.dumps(config))
    comparison = compared(connection, name, new, config_hash, where=where, read=read, quiet=quiet)
    if comparison.refusals:
        raise refused(name, comparison.refusals, where)
    values = {"config": json.dumps(new, sort_keys=True), "config_hash": config_hash}
    if connection.scalar(select(campaigns.c.id)) is None:
        connection.execute(insert(campaigns).values(id=1, name=name, created=now, **values))
    elif connection.scalar(select(campaigns.c.config_hash)) != config_hash:
        connection.execute(update(campaigns).values(**values))
    for pinned, spec in comparison.pins.items():
        row = {"name": pinned, "spec": json.dumps(spec, sort_keys=True)}
        connection.execute(insert(pinned_settings).values(**row))
    for slot in comparison.vacated:
        vacate(connection, slot, who=who, reason="the campaign file changed", now=now)
    for index, round_name in comparison.planned:
        connection.execute(
            insert(rounds).values(index=index, attempt=0, name=round_name, state="planned")
        )
    if comparison.changes:
        decided = rounds.c.state.in_(("accepted", "rejected"))
        count = select(func.count()).select_from(rounds).where(decided)
        connection.execute(
            insert(amendments).values(
                who=who,
                reason=reason.strip(),
                changes=json.dumps(comparison.sentences),
                decisions=connection.scalar(count) or 0,
                config_hash=config_hash,
                time=now,
            )
        )
    return comparison


def compared(
    connection: Connection,
    name: str,
    new: Mapping[str, Any],
    config_hash: str,
    *,
    where: str,
    read: Read = dict,
    quiet: Collection[str] = (),
) -> CampaignComparison:
    """Compare a campaign file with what the store knows; writes nothing.

    Args:
        new: JSON values of the file.

    Raises:
        StoreError: the store holds another campaign.
    """
    row = connection.execute(select(campaigns)).one_or_none()
    if row is None:
        added = frozenset(spec["name"] for spec in new.get("rounds", []))
        return compare({**new, "rounds": []}, new, committed_in(connection), added)
    if row.name != name:
        raise StoreError(
            f"this store holds the campaign {row.name!r}, not {name!r}",
            where=where,
            remedy="set store to another folder, or restore the old name",
        )
    if row.config_hash == config_hash:
        return CampaignComparison()
    stored = json.loads(row.config)
    old = _read_but(frozenset(quiet), stored, read)
    comparison = compare(old, new, committed_in(connection), frozenset(quiet))
    if row.config_hash and old == new == stored:
        changed = f"config hash: {row.config_hash} -> {config_hash}"
        why = "and no setting differs: the store was written by another program"
        return CampaignComparison(refusals=(Refusal(sentence=changed, why=why),))
    return comparison


def _read_but(quiet: frozenset[str], stored: dict[str, Any], read: Read) -> dict[str, Any]:
    """Read a stored configuration; rounds that fell due are kept by name, as the ledger has their settings.

    Versions before this one repeated those settings here.
    """
    rounds = stored.get("rounds", [])
    if not any(spec["name"] in quiet for spec in rounds):
        return dict(read(stored))
    plain = {**stored, "rounds": [spec for spec in rounds if spec["name"] not in quiet]}
    old = dict(read(plain))
    specs = {spec["name"]: spec for spec in old.get("rounds", [])}
    return {**old, "rounds": [specs.get(s["name"], {"name": s["name"]}) for s in rounds]}


def committed_in(connection: Connection) -> Committed:
    """Return the contents of the store that a campaign file has to respect."""
    dropped = set(connection.scalars(select(round_drops.c.index)))
    columns = (rounds.c.index, rounds.c.attempt, rounds.c.name, rounds.c.state)
    query = select(*columns).order_by(rounds.c.index, rounds.c.attempt)
    latest = {int(row._mapping["index"]): row for row in connection.execute(query)}
    live = [row for index, row in latest.items() if index not in dropped]
    pins = connection.execute(select(pinned_settings.c.name, pinned_settings.c.spec))
    return Committed(
        slots=tuple(
            Slot(
                index=int(row._mapping["index"]),
                name=row.name,
                state=row.state,
                attempts=row.attempt,
            )
            for row in live
        ),
        next_index=max((*latest, *dropped), default=-1) + 1,
        has_base=connection.scalar(select(alias_moves.c.seq).limit(1)) is not None,
        judged=judged_names(connection),
        pins={row.name: json.loads(row.spec) for row in pins},
    )


def vacate(
    connection: Connection, slot: Slot, *, who: str, reason: str, now: str, stays: bool = False
) -> None:
    """Give up a round's place in the ledger; attempts at it stay on record.

    Args:
        stays: the round is not run again, although the campaign file may still name it.
    """
    this = rounds.c.index == slot.index
    if slot.state in ("running", "gating"):
        ended = {"state": "failed", "report": json.dumps(INTERRUPTED), "ended": now}
        live = rounds.c.state.in_(("running", "gating"))
        connection.execute(update(rounds).where(this, live).values(**ended))
    release(connection, slot.name)
    if slot.attempts or stays:
        row = {"index": slot.index, "round": slot.name, "stays": int(stays), "who": who}
        connection.execute(insert(round_drops).values(**row, reason=reason.strip(), time=now))
    else:
        connection.execute(delete(rounds).where(this))


def refused(name: str, refusals: Collection[Refusal], where: str) -> StoreError:
    """Return the error that lists what committed verdicts do not allow to change."""
    lines = [refusal.line for refusal in refusals][:SHOWN]
    if len(refusals) > SHOWN:
        lines.append(f"and {len(refusals) - SHOWN} more")
    return StoreError(
        f"campaign {name!r} has verdicts that do not allow these changes:\n    "
        + "\n    ".join(lines),
        where=where,
        cause="results of two configurations in one ledger could not be told apart",
        remedy="restore the old values, or set store to another folder; what no verdict rests on "
        "(rounds to come, further suites, margins, defaults) may change",
    )

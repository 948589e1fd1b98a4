"""A due key becomes a round: once, whoever asks, however many ask at the same time.

Looking, deciding and claiming are one write transaction, so no two processes decide on the same history;
the unique key would refuse the second even then. The claim holds the round as the campaign file stated it:
an edit changes rounds to come and none that fell due. A process that dies after it leaves a round without
a verdict, and that round is what is due next.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, insert, select, update

from align.config import CampaignConfig, RoundConfig
from align.inbox import Inbox
from align.memory.database import Database
from align.memory.due_tables import due_claims, due_since
from align.memory.tables import rounds
from align.schedule.config import ScheduleSettings
from align.schedule.due import (
    Arrivals,
    Claimed,
    Due,
    History,
    Schedule,
    Tick,
    asked,
    tick,
)
from rollouts.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimedRound:
    """A round that fell due, as it was stated then."""

    schedule: str
    key: str
    reason: str
    claimed: datetime
    spec: RoundConfig
    """Under the round's own name, without a schedule."""


def schedules_of(config: CampaignConfig) -> list[Schedule]:
    """The rounds of a campaign file with what they wait for."""
    fields = ScheduleSettings.model_fields
    return [
        Schedule(
            name=spec.name,
            settings=ScheduleSettings.model_validate({f: getattr(spec, f) for f in fields}),
            stream=None if spec.data is None else spec.data.stream,
        )
        for spec in config.rounds
    ]


class Dues:
    """What falls due in one campaign."""

    def __init__(self, database: Database, config: CampaignConfig) -> None:
        self._database, self._schedules = database, schedules_of(config)
        self._specs = {spec.name: spec for spec in config.rounds}

    def look(self, now: datetime) -> Tick:
        """What is due and why the rest is not; changes nothing."""
        arrivals = self._arrivals()
        with self._database.read() as connection:
            history = history_of(connection)
        return tick(self._schedules, history, arrivals, now)

    def claim(self, now: datetime) -> Tick:
        """What is due, claimed: from now on it is a round of the campaign."""
        with self._database.write() as connection:
            self._register(connection, now)
            arrivals = self._arrivals()
            found = tick(self._schedules, history_of(connection), arrivals, now)
            for due in found.due:
                if not due.claimed:
                    self._insert(connection, due, arrivals, now)
            for one in found.waits:
                if one.passed:
                    this = due_since.c.schedule == one.schedule
                    connection.execute(update(due_since).where(this).values(since=_iso(now)))
        return found

    def claim_now(self, name: str, now: datetime) -> Due:
        """The round that a person asks for.

        Raises:
            UserError: no schedule has this name, it has run, or its stream holds nothing.
        """
        scheduled = {one.name: one for one in self._schedules if one.settings.scheduled}
        schedule = scheduled.get(name)
        if schedule is None:
            known = list(scheduled)
            remedy = (
                nearest(name, known) if known else "set every, when, after or manual in a round"
            )
            raise UserError(f"no round {name!r} has a schedule", where="NAME", remedy=remedy)
        with self._database.write() as connection:
            arrivals = self._arrivals()
            due = asked(schedule, history_of(connection), now)
            if not due.claimed:
                _check_room(connection, schedule, due, arrivals)
                self._insert(connection, due, arrivals, now)
        return due

    def _arrivals(self) -> dict[str, Arrivals]:
        # Its own view: rows may come meanwhile, but no watermark moves while this process writes.
        return {
            one.stream: Arrivals(
                count=one.waiting,
                oldest=None if one.oldest_waiting is None else _moment(one.oldest_waiting),
                newest=one.newest,
                watermark=one.watermark,
            )
            for one in Inbox(self._database).counts()
        }

    def _register(self, connection: Connection, now: datetime) -> None:
        """Ticks count from when a clock was first seen: a new one, or a changed one, owes nothing."""
        known = {row.schedule: row.clock for row in connection.execute(select(due_since))}
        for schedule in self._schedules:
            clock = f"{schedule.settings.every} {schedule.settings.timezone}"
            values = {"clock": clock, "since": _iso(now)}
            if schedule.settings.every is None or known.get(schedule.name) == clock:
                continue
            if schedule.name in known:
                this = due_since.c.schedule == schedule.name
                connection.execute(update(due_since).where(this).values(values))
            else:
                connection.execute(insert(due_since).values(schedule=schedule.name, **values))

    def _insert(
        self, connection: Connection, due: Due, arrivals: Mapping[str, Arrivals], now: datetime
    ) -> None:
        spec = self._specs[due.schedule]
        stream = None if spec.data is None else spec.data.stream
        seen = arrivals.get(stream or "", Arrivals())
        connection.execute(
            insert(due_claims).values(
                schedule=due.schedule,
                due_key=due.key,
                round=due.round,
                spec=json.dumps(stated(spec, due.round), sort_keys=True),
                reason=due.reason,
                newest=seen.newest,
                watermark=seen.watermark,
                claimed=_iso(now),
            )
        )


def stated(spec: RoundConfig, name: str) -> dict[str, object]:
    """A round in JSON values, under another name and without a schedule."""
    values = spec.model_dump(mode="json", exclude=set(ScheduleSettings.model_fields))
    return {**values, "name": name}


def claimed_rounds(database: Database) -> list[ClaimedRound]:
    """Every round that fell due, in order."""
    with database.read() as connection:
        found = connection.execute(select(due_claims).order_by(due_claims.c.seq)).all()
    return [
        ClaimedRound(
            schedule=row.schedule,
            key=row.due_key,
            reason=row.reason,
            claimed=_moment(row.claimed),
            spec=RoundConfig.model_validate(json.loads(row.spec)),
        )
        for row in found
    ]


def history_of(connection: Connection) -> History:
    """Claims, verdicts and clocks as the ledger has them."""
    decided = select(rounds.c.name).where(rounds.c.state.in_(("accepted", "rejected")))
    columns = [c for c in due_claims.c if c.name not in ("spec", "reason")]
    found = connection.execute(select(*columns).order_by(due_claims.c.seq))
    return History(
        claims=tuple(
            Claimed(
                schedule=row.schedule,
                key=row.due_key,
                round=row.round,
                claimed=_moment(row.claimed),
                newest=row.newest,
                watermark=row.watermark,
            )
            for row in found
        ),
        verdicts=frozenset(connection.scalars(decided)),
        since={r.schedule: _moment(r.since) for r in connection.execute(select(due_since))},
    )


def _check_room(
    connection: Connection, schedule: Schedule, due: Due, arrivals: Mapping[str, Arrivals]
) -> None:
    """Whether a round can be had now for the asking."""
    taken = select(due_claims.c.round).where(due_claims.c.round == due.round)
    if connection.scalar(taken) is not None:
        raise UserError(
            f"round {due.round!r} has run, and does not repeat",
            where="NAME",
            remedy=f"set repeat: true for {schedule.name!r}",
        )
    if schedule.stream is not None and not arrivals.get(schedule.stream, Arrivals()).count:
        raise UserError(
            f"nothing waits in inbox://{schedule.stream} for {due.round!r}",
            where="NAME",
            remedy="send pairs with keel feedback add or keel feedback serve",
        )


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")

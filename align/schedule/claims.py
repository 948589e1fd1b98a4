"""A due key becomes a round: once, whoever asks, however many ask at the same time.

Looking, deciding and claiming are one write transaction, so no two processes decide on the same history;
the unique key would refuse the second even then. The claim holds the round as the campaign file stated it:
an edit changes rounds to come and none that fell due. A process that dies after it leaves a round without
a verdict, and that round is what is due next.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, insert, not_, select, update

from align.config.campaign import CampaignConfig, RoundConfig
from align.config.data import INBOX
from align.config.schedule import ScheduleSettings
from align.schedule.due import (
    Arrivals,
    Claimed,
    Due,
    History,
    Schedule,
    Skip,
    Tick,
    asked,
    starved,
    tick,
)
from align.schedule.inbox import Inbox
from align.store.database.database import Database
from align.store.ledger.due_rounds import moment_of
from align.store.ledger.reservations import release
from align.store.ledger.tables.core import rounds
from align.store.ledger.tables.due import due_claims, due_since
from align.store.ledger.tables.logs import due_skips
from rollouts.errors import UserError, nearest


def schedules_of(config: CampaignConfig) -> list[Schedule]:
    """List the rounds of a campaign file with what they wait for."""
    fields = ScheduleSettings.model_fields
    return [
        Schedule(
            name=spec.name,
            settings=ScheduleSettings.model_validate({f: getattr(spec, f) for f in fields}),
            stream=None if spec.data is None else spec.data.stream,
            rereads=spec.data is not None and spec.data.use != "once",
        )
        for spec in config.rounds
    ]


class Dues:
    """Rounds that fall due in one campaign."""

    def __init__(self, database: Database, config: CampaignConfig) -> None:
        self._database, self._schedules = database, schedules_of(config)
        self._specs = {spec.name: spec for spec in config.rounds}
        self._places = config.places

    def look(self, now: datetime) -> Tick:
        """Find what is due and why the rest is not; change nothing."""
        with self._database.read() as connection:
            return self.look_within(connection, now)[0]

    def claim(self, now: datetime, checked: Collection[str] | None = None) -> Tick:
        """Claim what is due: from now on it is a round of the campaign.

        Args:
            checked: schedules whose rounds may be claimed; others that are due stay so. None: all.
        """
        with self._database.write() as connection:
            self._register(connection, now)
            history = history_of(connection)
            arrivals = self._arrivals(history)
            due_now = tick(self._schedules, history, arrivals, now)
            live = rounds.c.state.in_(("running", "gating"))
            under_way = set(connection.scalars(select(rounds.c.name).where(live)))
            for claim in history.open:
                if starved(claim, arrivals) and claim.round not in under_way:
                    pass_over(connection, claim.schedule, claim.key, claim.round, now)
            for due in due_now.due:
                if not due.claimed and (checked is None or due.schedule in checked):
                    self._insert(connection, due, arrivals, now)
            for waiting in due_now.waits:
                if waiting.passed:
                    this = due_since.c.schedule == waiting.schedule
                    connection.execute(update(due_since).where(this).values(since=iso(now)))
        return due_now

    def ask(self, name: str, now: datetime) -> Due:
        """Return the round that a person would get; raise as `claim_now` does, and change nothing."""
        with self._database.read() as connection:
            return self._asked(connection, name, now)[0]

    def claim_now(self, name: str, now: datetime) -> Due:
        """Claim the round that a person asks for.

        Raises:
            UserError: no schedule has this name, it has run, its stream holds nothing, or another round
                reads that.
        """
        with self._database.write() as connection:
            due, arrivals = self._asked(connection, name, now)
            if not due.claimed:
                self._insert(connection, due, arrivals, now)
        return due

    def _asked(
        self, connection: Connection, name: str, now: datetime
    ) -> tuple[Due, Mapping[str, Arrivals]]:
        scheduled = {each.name: each for each in self._schedules if each.settings.scheduled}
        schedule = scheduled.get(name)
        if schedule is None:
            known = list(scheduled)
            remedy = (
                nearest(name, known) if known else "set every, when, after or manual in a round"
            )
            raise UserError(f"no round {name!r} has a schedule", where="NAME", remedy=remedy)
        history = history_of(connection)
        arrivals = self._arrivals(history)
        due = asked(schedule, history, now)
        _check_rows(schedule, due, arrivals)
        if not due.claimed:
            _check_claimable(connection, schedule, due, history)
        return due, arrivals

    def keep_claimed(self, connection: Connection, due: Due, now: datetime) -> None:
        """Claim what is due inside the caller's transaction, unless it is claimed."""
        if not due.claimed:
            self._insert(connection, due, self._arrivals(history_of(connection)), now)

    def look_within(self, connection: Connection, now: datetime) -> tuple[Tick, History]:
        """Find what is due and what has been, as the caller's transaction sees it."""
        history = history_of(connection)
        return tick(self._schedules, history, self._arrivals(history), now), history

    def _arrivals(self, history: History) -> dict[str, Arrivals]:
        # Its own view: rows may come meanwhile, but no watermark moves while this process writes.
        inbox = Inbox(self._database)
        by_counter = {
            stream: Arrivals(
                count=waiting.count,
                oldest=waiting.oldest,
                newest=waiting.newest_id,
                watermark=watermark,
            )
            for stream, (waiting, watermark) in inbox.arrivals().items()
        }
        for schedule in self._schedules:
            if schedule.rereads and schedule.stream is not None:
                read = max((claim.newest for claim in history.of(schedule.name)), default=0)
                new = inbox.waiting(schedule.stream, above=read)
                by_counter[schedule.counter] = Arrivals(
                    count=new.count, oldest=new.oldest, newest=new.newest_id, watermark=read
                )
        return by_counter

    def would_be(self, due: Sequence[Due]) -> list[RoundConfig]:
        """Return the rounds that these become once they are claimed, without those that are."""
        return [
            RoundConfig.model_validate(
                stated(self._specs[claimed.schedule], claimed.round), context=self._places
            )
            for claimed in due
            if not claimed.claimed
        ]

    def _register(self, connection: Connection, now: datetime) -> None:
        """Record when a clock was first seen, from which its ticks count: a new or changed one owes
        nothing."""
        rows = connection.execute(select(due_since)).all()
        # A moment to come is one that a clock wrote down which was ahead.
        known = {row.schedule: row.clock if moment_of(row.since) <= now else None for row in rows}
        for schedule in self._schedules:
            clock = f"{schedule.settings.every} {schedule.settings.timezone}"
            values = {"clock": clock, "since": iso(now)}
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
        (counter,) = (each.counter for each in self._schedules if each.name == due.schedule)
        waiting = arrivals.get(counter, Arrivals())
        connection.execute(
            insert(due_claims).values(
                schedule=due.schedule,
                due_key=due.key,
                round=due.round,
                spec=json.dumps(stated(spec, due.round), sort_keys=True),
                reason=due.reason,
                newest=waiting.newest,
                watermark=waiting.watermark,
                claimed=iso(now),
            )
        )


def stated(spec: RoundConfig, name: str) -> dict[str, object]:
    """Return a round in JSON values, under another name and without a schedule."""
    values = spec.model_dump(mode="json", exclude=set(ScheduleSettings.model_fields))
    return {**values, "name": name}


def history_of(connection: Connection) -> History:
    """Read claims, verdicts and clocks as the ledger has them."""
    decided = select(rounds.c.name).where(rounds.c.state.in_(("accepted", "rejected")))
    columns = [c for c in due_claims.c if c.name not in ("spec", "reason")]
    records = connection.execute(select(*columns).order_by(due_claims.c.seq))
    never = due_claims.c.round.in_(decided) | due_claims.c.round.in_(select(due_skips.c.round))
    unfinished = select(due_claims.c.round, due_claims.c.spec).where(not_(never))
    streams = {row.round: used_up(row.spec) for row in connection.execute(unfinished)}
    return History(
        claims=tuple(
            Claimed(
                schedule=row.schedule,
                key=row.due_key,
                round=row.round,
                claimed=moment_of(row.claimed),
                newest=row.newest,
                watermark=row.watermark,
                stream=streams.get(row.round),
            )
            for row in records
        ),
        verdicts=frozenset(connection.scalars(decided)),
        skips=skips_of(connection),
        since={r.schedule: moment_of(r.since) for r in connection.execute(select(due_since))},
    )


def skips_of(connection: Connection) -> tuple[Skip, ...]:
    """List every due key that a person passed over, in order."""
    records = connection.execute(select(due_skips).order_by(due_skips.c.seq))
    return tuple(
        Skip(
            schedule=row.schedule,
            key=row.due_key,
            round=row.round,
            who=row.who,
            reason=row.reason,
            time=moment_of(row.time),
        )
        for row in records
    )


def pass_over(connection: Connection, schedule: str, key: str, round: str, now: datetime) -> bool:
    """Skip a template's round whose rows are gone, so that the next one falls due as its schedule says.

    A round that does not repeat would be lost: it waits, and False is returned.
    """
    if round == schedule:
        return False
    if connection.scalar(select(due_skips.c.seq).where(due_skips.c.round == round)) is not None:
        return True
    why = {"who": "keel", "reason": "nothing was left in the inbox for it"}
    spent = {"schedule": schedule, "due_key": key, "round": round}
    connection.execute(insert(due_skips).values(**spent, **why, time=iso(now)))
    release(connection, round)
    return True


def used_up(spec: str) -> str | None:
    """Return the stream whose rows a round reads once, of what its claim holds."""
    data = json.loads(spec).get("data") or {}
    if data.get("use", "once") != "once" or not str(data.get("source")).startswith(INBOX):
        return None
    return str(data["source"]).removeprefix(INBOX)


def _check_claimable(
    connection: Connection, schedule: Schedule, due: Due, history: History
) -> None:
    """Refuse a round that has had its turn and does not repeat, or whose stream another round reads."""
    claimed = select(due_claims.c.round).where(due_claims.c.round == due.round)
    if connection.scalar(claimed) is not None:
        skipped = connection.scalar(select(due_skips.c.seq).where(due_skips.c.round == due.round))
        raise UserError(
            f"round {due.round!r} {'has run' if skipped is None else 'was skipped'}, and does not repeat",
            where="NAME",
            remedy=f"set repeat: true for {due.schedule!r}",
        )
    for claim in history.open:
        if claim.stream is not None and claim.stream == schedule.uses_up:
            raise UserError(
                f"inbox://{claim.stream} is read by {claim.round}, which fell due before and has no "
                "verdict yet",
                where="NAME",
                remedy="keel schedule tick runs it; or pass it over: "
                f"keel schedule skip CAMPAIGN {claim.round}",
            )


def _check_rows(schedule: Schedule, due: Due, arrivals: Mapping[str, Arrivals]) -> None:
    """Refuse a round if there is nothing for it to read."""
    waiting = arrivals.get(schedule.counter, Arrivals())
    if schedule.stream is not None and not (waiting.newest if schedule.rereads else waiting.count):
        raise UserError(
            f"nothing waits in inbox://{schedule.stream} for {due.round!r}",
            where="NAME",
            remedy="send pairs with keel feedback add or keel feedback serve",
        )


def iso(moment: datetime) -> str:
    """Spell a moment as the ledger stores it: ISO 8601 in UTC, to the millisecond."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")

"""What is due now, and why the rest is not: a pure function of schedules, history, arrivals and time.

A due key names the reason and nothing that two observers could see differently: a tick by its minute in
UTC, arrivals by where their counting began. Whoever looks, and how often, finds the same key.

    cron/2026-11-20T03:00Z      the latest tick; those missed before it are in it
    pairs/5f2c9a1e0b7d          enough has arrived since that row of the stream
    after/judge                 that round has its verdict
    manual/2026-11-20T09:12:44Z a person asked
    at-once                     a round without a schedule
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from align.schedule.clock import last_tick, next_tick
from align.schedule.config import ArrivalsConfig, ScheduleSettings, spell_duration

AT_ONCE = "at-once"
"""Key of a round without a schedule."""
NOT_BEGUN = datetime.max.replace(tzinfo=UTC)
"""Of a schedule that nobody has looked at yet: no tick is behind it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A round of the campaign file with what it waits for, which may be nothing."""

    name: str
    settings: ScheduleSettings
    stream: str | None = None
    """Of the inbox, that its rounds read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrivals:
    """What waits in a stream of the inbox."""

    count: int = 0
    """Usable rows that no round has used."""
    oldest: datetime | None = None
    """When the first of them arrived."""
    newest: int = 0
    """Number of the last row."""
    watermark: int = 0
    """Number of the last row that a round has used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claimed:
    """A due key that has become a round."""

    schedule: str
    key: str
    round: str
    claimed: datetime
    newest: int = 0
    """Number of the stream's last row then."""
    watermark: int = 0
    """And where its watermark stood."""


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What has happened so far."""

    claims: tuple[Claimed, ...] = ()
    """In order."""
    verdicts: frozenset[str] = frozenset()
    """Rounds that were accepted or rejected."""
    since: Mapping[str, datetime] = field(default_factory=dict)
    """From when on the ticks of a schedule count: when it was first seen, or last looked at in vain."""

    def of(self, schedule: str) -> list[Claimed]:
        return [claim for claim in self.claims if claim.schedule == schedule]


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """A round to run now."""

    schedule: str
    key: str
    round: str
    reason: str
    claimed: bool = False
    """It is a round of the campaign already: it fell due before, or is due at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Waits:
    """A schedule with nothing to run now."""

    schedule: str
    why: str
    next: datetime | None = None
    """When time alone makes it due, or may; None: something else has to happen."""
    passed: bool = False
    """A tick of its clock found too little to run on: it is over, the next one counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """The answer at one moment: every schedule is in one list, but for plain rounds that are done."""

    due: tuple[Due, ...]
    waits: tuple[Waits, ...]

    @property
    def next(self) -> datetime | None:
        """The earliest moment at which time alone may make something due."""
        return min((w.next for w in self.waits if w.next is not None), default=None)


def tick(
    schedules: Sequence[Schedule],
    history: History,
    arrivals: Mapping[str, Arrivals],
    now: datetime,
) -> Tick:
    """What is due at ``now``, in the order of the campaign file.

    A schedule has at most one round without a verdict: while it has one, that one is what is due.
    """
    found = [
        decide(s, history, arrivals.get(s.stream or "", Arrivals()), now)
        for s in schedules
        if s.settings.scheduled or s.name not in history.verdicts
    ]
    return Tick(
        due=tuple(one for one in found if isinstance(one, Due)),
        waits=tuple(one for one in found if isinstance(one, Waits)),
    )


def decide(schedule: Schedule, history: History, arrivals: Arrivals, now: datetime) -> Due | Waits:
    """One schedule: due, or why not yet."""
    settings, name = schedule.settings, schedule.name
    last = next(reversed(history.of(name)), None)
    if last is not None and last.round not in history.verdicts:
        reason = f"fell due {_spell(last.claimed)} and has no verdict yet"
        return Due(schedule=name, key=last.key, round=last.round, claimed=True, reason=reason)
    if not settings.repeats and (last is not None or name in history.verdicts):
        return Waits(schedule=name, why="has run, and does not repeat")
    if not settings.scheduled:
        return Due(schedule=name, key=AT_ONCE, round=name, claimed=True, reason="is due at once")
    if settings.after is not None and (found := _after(schedule, history)) is not None:
        return found
    if settings.every is not None:
        return _by_clock(schedule, history, arrivals, now)
    if settings.when is not None:
        return _by_arrivals(schedule, settings.when, history, arrivals, now)
    return Waits(schedule=name, why=f"runs when asked: keel schedule run-now CAMPAIGN {name}")


def asked(schedule: Schedule, history: History, now: datetime) -> Due:
    """The round that a person asks for now, unless the schedule has one that is not finished."""
    found = decide(schedule, history, Arrivals(), now)
    if isinstance(found, Due) and found.claimed:
        return found
    key = f"manual/{now.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return _due(schedule, history, key, "a person asked")


def round_name(schedule: Schedule, history: History) -> str:
    """Of the next round: its own where it runs once, else with its number."""
    if not schedule.settings.repeats:
        return schedule.name
    return f"{schedule.name}-{len(history.of(schedule.name)) + 1}"


def _after(schedule: Schedule, history: History) -> Due | Waits | None:
    """Where only the other round counts: due or not; where it is a condition: None once it holds."""
    settings, other = schedule.settings, schedule.settings.after
    assert other is not None
    rounds = [other, *(claim.round for claim in history.of(other))]
    done = [name for name in rounds if name in history.verdicts]
    if not done:
        return Waits(schedule=schedule.name, why=f"waits for the verdict on {other}")
    if settings.every is not None or settings.when is not None:
        return None
    key = f"after/{done[-1]}"
    if any(claim.key == key for claim in history.of(schedule.name)):
        return Waits(schedule=schedule.name, why=f"waits for the verdict after {done[-1]}")
    return _due(schedule, history, key, f"{done[-1]} has its verdict")


def _by_clock(
    schedule: Schedule, history: History, arrivals: Arrivals, now: datetime
) -> Due | Waits:
    """At a tick, provided that what the round needs has arrived."""
    settings, mine = schedule.settings, history.of(schedule.name)
    assert settings.every is not None
    since = max([history.since.get(schedule.name, NOT_BEGUN), *(c.claimed for c in mine[-1:])])
    came = last_tick(settings.every, settings.timezone, since, now)
    following = next_tick(settings.every, settings.timezone, now)
    if came is None:
        why = f"the next tick is {_spell(following)}"
        return Waits(schedule=schedule.name, why=why, next=following)
    reason = f"tick of {_spell(came)}"
    if settings.when is not None:
        enough = _by_arrivals(schedule, settings.when, history, arrivals, now)
        if isinstance(enough, Waits):
            return _passed(enough, came, following)
        reason = f"{reason}, {enough.reason}"
    elif schedule.stream is not None and not arrivals.count:
        nothing = Waits(schedule=schedule.name, why=f"nothing waits in inbox://{schedule.stream}")
        return _passed(nothing, came, following)
    return _due(schedule, history, f"cron/{came:%Y-%m-%dT%H:%MZ}", reason)


def _passed(found: Waits, came: datetime, following: datetime) -> Waits:
    why = f"{found.why} at the tick of {_spell(came)}; the next is {_spell(following)}"
    return Waits(schedule=found.schedule, why=why, next=following, passed=True)


def _by_arrivals(
    schedule: Schedule,
    when: ArrivalsConfig,
    history: History,
    arrivals: Arrivals,
    now: datetime,
) -> Due | Waits:
    """Enough has arrived, or too little for too long.

    Rows that a rejected round gave back are read again by the next one, and are no reason for it: what has
    arrived since then is.
    """
    last = next(reversed(history.of(schedule.name)), None)
    returned = last is not None and last.watermark == arrivals.watermark
    since = last.newest if last is not None and returned else arrivals.watermark
    fresh = min(arrivals.count, arrivals.newest - since)
    place = f"inbox://{schedule.stream}"
    if fresh < 1 or arrivals.oldest is None:
        why = f"0 of {when.new_pairs} new rows in {place}"
        return Waits(schedule=schedule.name, why=why)
    waits_since = max([arrivals.oldest, *([last.claimed] if last else [])])
    earliest = last.claimed + when.min_interval if last else now
    patience = None if when.max_wait is None else waits_since + when.max_wait
    why = f"{fresh} of {when.new_pairs} new rows in {place}"
    if patience is not None and now >= patience and fresh < when.new_pairs:
        why += f", the first has waited {spell_duration(_seconds(now - waits_since))}"
    elif fresh < when.new_pairs:
        at = None if patience is None else max(patience, earliest)
        until = "" if at is None else f"; at {_spell(at)} they are enough"
        return Waits(schedule=schedule.name, why=why + until, next=at)
    if now < earliest:
        why += f", but min_interval {spell_duration(when.min_interval)} ends {_spell(earliest)}"
        return Waits(schedule=schedule.name, why=why, next=earliest)
    mark = hashlib.sha256(f"{schedule.stream}/{arrivals.watermark}/{since}".encode()).hexdigest()
    return _due(schedule, history, f"pairs/{mark[:12]}", why)


def _due(schedule: Schedule, history: History, key: str, reason: str) -> Due:
    name = round_name(schedule, history)
    return Due(schedule=schedule.name, key=key, round=name, reason=reason)


def _seconds(value: timedelta) -> timedelta:
    return timedelta(seconds=int(value.total_seconds()))


def _spell(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"

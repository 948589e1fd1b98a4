"""Decision what is due now, and why the rest is not: a pure function of schedules, history, arrivals
and time.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from align.clock import last_tick, next_tick
from align.config.schedule import ArrivalsConfig, ScheduleSettings, spell_duration

AT_ONCE = "at-once"
"""Key of a round without a schedule."""
NOT_BEGUN = datetime.max.replace(tzinfo=UTC)
"""Beginning of a schedule that nobody has looked at yet: no tick is behind it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A round of the campaign file with what it waits for, which may be nothing."""

    name: str
    settings: ScheduleSettings
    stream: str | None = None
    """Stream of the inbox that its rounds read."""
    rereads: bool = False
    """They read rows whether or not other rounds have used them, and use up none."""

    @property
    def counter(self) -> str:
        """Name under which its arrivals are counted: what is new to others need not be new to it."""
        return f"{self.stream}/{self.name}" if self.rereads else self.stream or ""

    @property
    def uses_up(self) -> str | None:
        """The stream that no other round may read at the same time."""
        return None if self.rereads else self.stream


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrivals:
    """Rows that wait in a stream of the inbox, for all that use it up or for one schedule that rereads
    it."""

    count: int = 0
    """Usable rows above the watermark."""
    oldest: datetime | None = None
    """Time at which the oldest of them arrived."""
    newest: int = 0
    """Number of the last row."""
    watermark: int = 0
    """Number of the last row that a round has used, or that was there when the schedule last fell due."""


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
    """Watermark of the stream when the round fell due."""
    stream: str | None = None
    """Stream this open round consumes; None if it rereads rows or is decided."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Skip:
    """A due key that a person passed over: its round is not run, and it spends nothing."""

    schedule: str
    key: str
    round: str
    who: str
    reason: str
    """Empty where none was given."""
    time: datetime

    @property
    def sentence(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        return (
            f"{self.round} was skipped by {self.who} on {_spell(self.time)}{why} "
            f"({self.schedule}/{self.key})"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """Claims, verdicts and clocks of a campaign so far."""

    claims: tuple[Claimed, ...] = ()
    """Claims in order."""
    verdicts: frozenset[str] = frozenset()
    """Rounds that were accepted or rejected."""
    skips: tuple[Skip, ...] = ()
    """Skips in order."""
    since: Mapping[str, datetime] = field(default_factory=dict)
    """Time from which the ticks of a schedule count: when it was first seen, or last looked at in vain."""

    def of(self, schedule: str) -> list[Claimed]:
        return [claim for claim in self.claims if claim.schedule == schedule]

    @property
    def open(self) -> list[Claimed]:
        """Rounds that fell due and have no verdict yet, in order."""
        over = self.verdicts | self.skipped.keys()
        return [claim for claim in self.claims if claim.round not in over]

    def last_claimed(self, schedule: str, now: datetime) -> datetime | None:
        """Return when the schedule's last round fell due. A time that a fast clock wrote down is not in
        the past yet, and nothing is counted from it."""
        past = (claim.claimed for claim in self.of(schedule) if claim.claimed <= now)
        return max(past, default=None)

    @property
    def skipped(self) -> dict[str, Skip]:
        """Skips by round."""
        return {skip.round: skip for skip in self.skips}


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """A round to run now."""

    schedule: str
    key: str
    round: str
    reason: str
    claimed: bool = False
    """True if it is a round of the campaign already: it fell due before, or is due at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Waits:
    """A schedule with nothing to run now."""

    schedule: str
    why: str
    next: datetime | None = None
    """Time at which time alone makes it due, or may; None: something else has to happen."""
    passed: bool = False
    """A tick of its clock found too little to run on: it is over, the next one counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """The answer at one moment: every schedule is in one list, but for plain rounds that are done."""

    due: tuple[Due, ...]
    waits: tuple[Waits, ...]
    skips: tuple[Skip, ...] = ()
    """Skips of the schedules whose last round was skipped."""

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
    """Decide what is due at ``now``, in the order of the campaign file; ``arrivals`` by
    `Schedule.counter`.

    A schedule has at most one round without a verdict: while it has one, that one is what is due, even if
    the schedule is no longer in the file. So is a stream's, among those that use up its rows.
    """
    taken_up = {
        claim.schedule: starved(claim, arrivals) or _take_up(claim) for claim in history.open
    }
    decisions = [
        taken_up.pop(s.name)
        if s.name in taken_up
        else decide(s, history, arrivals.get(s.counter, Arrivals()), now)
        for s in schedules
        if s.settings.scheduled or s.name not in history.verdicts
    ]
    decisions = [*_one_a_stream(decisions, schedules, history), *taken_up.values()]
    return Tick(
        due=tuple(decision for decision in decisions if isinstance(decision, Due)),
        waits=tuple(decision for decision in decisions if isinstance(decision, Waits)),
        skips=tuple(
            skip
            for s in schedules
            for claim in history.of(s.name)[-1:]
            if (skip := history.skipped.get(claim.round)) is not None
        ),
    )


def _take_up(claim: Claimed) -> Due:
    """Take up a round that fell due before."""
    reason = f"fell due {_spell(claim.claimed)} and has no verdict yet"
    return Due(
        schedule=claim.schedule, key=claim.key, round=claim.round, claimed=True, reason=reason
    )


def starved(claim: Claimed, arrivals: Mapping[str, Arrivals]) -> Waits | None:
    """Tell why a round has no rows: another has used them or a person removed them."""
    if claim.stream is None or arrivals.get(claim.stream, Arrivals()).count:
        return None
    why = f"nothing is left in inbox://{claim.stream} for {claim.round}"
    return Waits(
        schedule=claim.schedule,
        why=f"{why}, which fell due {_spell(claim.claimed)}",
    )


def _one_a_stream(
    decisions: Sequence[Due | Waits], schedules: Sequence[Schedule], history: History
) -> Iterator[Due | Waits]:
    """Let only one of two rounds fall due for the same rows: the second waits for the verdict on the
    first."""
    streams = {s.name: s.uses_up for s in schedules}
    readers = {claim.stream: claim.round for claim in reversed(history.open)}
    for decision in decisions:
        if isinstance(decision, Due) and decision.claimed:
            readers.setdefault(streams[decision.schedule], decision.round)
    for decision in decisions:
        stream = streams[decision.schedule]
        if isinstance(decision, Due) and not decision.claimed and stream is not None:
            reader = readers.setdefault(stream, decision.round)
            if reader != decision.round:
                why = f"waits for the verdict on {reader}, which reads inbox://{stream} too"
                yield Waits(schedule=decision.schedule, why=why)
                continue
        yield decision


def decide(schedule: Schedule, history: History, arrivals: Arrivals, now: datetime) -> Due | Waits:
    """Decide on one schedule whose rounds all have their verdict: due, or why not yet."""
    settings, name = schedule.settings, schedule.name
    last = next(reversed(history.of(name)), None)
    skipped = last is not None and last.round in history.skipped
    if not settings.repeats and (last is not None or name in history.verdicts):
        done = "was skipped" if skipped else "has run"
        return Waits(schedule=name, why=f"{done}, and does not repeat")
    if not settings.scheduled:
        return Due(schedule=name, key=AT_ONCE, round=name, claimed=True, reason="is due at once")
    if settings.after is not None and (decision := _after(schedule, history)) is not None:
        return decision
    if settings.every is not None:
        return _by_clock(schedule, history, arrivals, now)
    if settings.when is not None:
        return _by_arrivals(schedule, settings.when, history, arrivals, now)
    return Waits(schedule=name, why=f"runs when asked: keel schedule run-now CAMPAIGN {name}")


def asked(schedule: Schedule, history: History, now: datetime) -> Due:
    """Return the round that a person asks for now, unless the schedule has one that is not finished."""
    for claim in history.open:
        if claim.schedule == schedule.name:
            return _take_up(claim)
    key = f"manual/{now.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return _due(schedule, history, key, "a person asked")


def round_name(schedule: Schedule, history: History) -> str:
    """Return the name of the next round: its own where it runs once, else with its number."""
    if not schedule.settings.repeats:
        return schedule.name
    return f"{schedule.name}-{len(history.of(schedule.name)) + 1}"


def _after(schedule: Schedule, history: History) -> Due | Waits | None:
    """Decide where only the other round counts; return None where it is a condition that holds."""
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
    """Decide at a tick, provided that what the round needs has arrived."""
    settings, claims = schedule.settings, history.of(schedule.name)
    assert settings.every is not None
    over = [history.since.get(schedule.name, NOT_BEGUN), *(c.claimed for c in claims)]
    # A person who skips a round means the ticks that came while it was open as well.
    over += [s.time for c in claims[-1:] if (s := history.skipped.get(c.round)) is not None]
    # A clock that was ahead has written down moments to come: they say nothing of which ticks are over,
    # and the ticks that it had fall due are not to be had again.
    since = max((moment for moment in over if moment <= now), default=now)
    spent = {c.key for c in claims}
    came = last_tick(settings.every, settings.timezone, since, now)
    following = next_tick(settings.every, settings.timezone, now)
    while _tick_key(following) in spent:
        following = next_tick(settings.every, settings.timezone, following)
    if came is None or _tick_key(came) in spent:
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
    return _due(schedule, history, _tick_key(came), reason)


def _tick_key(moment: datetime) -> str:
    return f"cron/{moment:%Y-%m-%dT%H:%MZ}"


def _passed(waits: Waits, came: datetime, following: datetime) -> Waits:
    why = f"{waits.why} at the tick of {_spell(came)}; the next is {_spell(following)}"
    return Waits(schedule=waits.schedule, why=why, next=following, passed=True)


def _by_arrivals(
    schedule: Schedule,
    when: ArrivalsConfig,
    history: History,
    arrivals: Arrivals,
    now: datetime,
) -> Due | Waits:
    """Decide if enough has arrived, or too little for too long.

    Rows that a rejected round gave back are read again by the next one, and are no reason for it: what has
    arrived since then is.
    """
    last = next(reversed(history.of(schedule.name)), None)
    returned = last is not None and last.watermark == arrivals.watermark
    since = last.newest if last is not None and returned else arrivals.watermark
    fresh = min(arrivals.count, arrivals.newest - since)
    stream = f"inbox://{schedule.stream}"
    if fresh < 1 or arrivals.oldest is None:
        why = f"0 of {when.new_pairs} new rows in {stream}"
        return Waits(schedule=schedule.name, why=why)
    claimed = history.last_claimed(schedule.name, now)
    # Rows from a clock that was ahead have waited nobody knows how long: long enough.
    ahead = arrivals.oldest > now
    known = now - (when.max_wait or timedelta(0)) if ahead else arrivals.oldest
    waits_since = known if claimed is None else max(known, claimed)
    earliest = now if claimed is None else claimed + when.min_interval
    patience = None if when.max_wait is None else waits_since + when.max_wait
    why = f"{fresh} of {when.new_pairs} new rows in {stream}"
    if patience is not None and now >= patience and fresh < when.new_pairs:
        stamped = f"is stamped {_spell(arrivals.oldest)}, when a clock was ahead"
        waited = f"has waited {spell_duration(timedelta(seconds=int((now - waits_since).total_seconds())))}"
        why += f", the first {stamped if ahead else waited}"
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


def _spell(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"

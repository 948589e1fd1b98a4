"""Due rounds, worked by hand across changes of the clock, and for any order of events."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from align.clock import last_tick, next_tick
from align.schedule.due import AT_ONCE, Arrivals, Claimed, Due, History, Waits, asked, tick
from tests.unit.schedules import NAME, START, World, arrived, at, schedule

NIGHTLY = schedule(every="0 3 * * *")
FED = schedule(stream="taste", when={"new_pairs": 10, "min_interval": "6h", "max_wait": "2d"})


def claim(round: str, when: datetime, **fields: object) -> Claimed:
    known = {"schedule": NAME, "key": f"key-of-{round}", "round": round, "claimed": when}
    return Claimed(**known | fields)  # type: ignore[arg-type]


def test_a_tick_is_due_once_under_the_minute_it_came() -> None:
    world = World(NIGHTLY, at("2026-11-20 02:59:59"))
    early = world.claim()
    assert isinstance(early, Waits)
    assert early.next == at("2026-11-20 03:00")
    world.wait(seconds=1)
    due = world.claim()
    assert isinstance(due, Due)
    assert (due.key, due.round) == ("cron/2026-11-20T03:00Z", "nightly-1")
    world.finish()
    world.wait(hours=20)
    late = world.claim()
    assert isinstance(late, Waits)
    assert late.next == at("2026-11-21 03:00")


def test_missed_ticks_are_one() -> None:
    world = World(NIGHTLY, at("2026-11-01 12:00"))
    world.wait(days=10)
    due = world.claim()
    assert isinstance(due, Due)
    assert due.key == "cron/2026-11-11T03:00Z"
    world.finish()
    assert isinstance(world.claim(), Waits)


def test_a_schedule_owes_nothing_from_before_it_was_seen() -> None:
    found = tick([NIGHTLY], History(), {}, at("2026-11-20 04:00"))
    assert [one.next for one in found.waits] == [at("2026-11-21 03:00")]


def test_an_open_round_is_what_is_due() -> None:
    """Whatever else would be: no two rounds of one schedule overlap."""
    world = World(NIGHTLY)
    world.wait(days=1)
    first = world.claim()
    assert isinstance(first, Due)
    world.wait(days=3)
    again = world.claim()
    assert isinstance(again, Due)
    assert (again.round, again.key, again.claimed) == (first.round, first.key, True)
    assert len(world.found) == 1


@pytest.mark.parametrize(
    ("every", "day", "ticks"),
    [
        # On 29 March the clocks go from 02:00 to 03:00, on 25 October from 03:00 back to 02:00.
        ("30 2 * * *", "2026-03-29", ["01:00"]),
        ("30 2 * * *", "2026-10-25", ["00:30"]),
        ("0 */2 * * *", "2026-10-25", ["00:00", "01:00", "03:00"]),
        ("30 * * * *", "2026-10-25", ["00:30", "01:30", "02:30", "03:30"]),
        ("0 3 * * *", "2026-03-29", ["01:00"]),
        ("0 3 * * *", "2026-10-25", ["02:00"]),
    ],
)
def test_summer_time_begins_and_ends(every: str, day: str, ticks: list[str]) -> None:
    """Seen by somebody who looks every ten minutes, from midnight UTC for four hours."""
    since, found = at(f"{day} 00:00") - timedelta(minutes=1), []
    for minutes in range(0, 240, 10):
        now = at(f"{day} 00:00") + timedelta(minutes=minutes)
        if (came := last_tick(every, "Europe/Berlin", since, now)) is not None:
            found.append(f"{came:%H:%M}")
            since = now
    assert found == ticks


moments = st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC))
crons = st.sampled_from(
    ["30 2 * * *", "0 */6 * * *", "*/20 * * * *", "0 3 * * 1", "15 1,2,3 * * *"]
)
zones = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])


@given(crons, zones, moments, st.integers(0, 3 * 86400))
@settings(max_examples=150, deadline=None)
def test_looking_back_finds_what_looking_forward_does(
    every: str, zone: str, since: datetime, seconds: int
) -> None:
    now, forward = since + timedelta(seconds=seconds), []
    ticks = CronSim(every, since.astimezone(ZoneInfo(zone)))
    while (came := next(ticks).astimezone(UTC)) <= now:
        forward.append(came)
    expected = forward[-1] if forward else None
    assert last_tick(every, zone, since, now) == expected
    assert next_tick(every, zone, now) > now


def test_arrivals_by_number_by_patience_and_not_too_often() -> None:
    world = World(FED)
    world.arrive(9)
    few = world.claim()
    assert isinstance(few, Waits)
    assert few.why == "9 of 10 new rows in inbox://taste; at 2026-11-22 12:00 UTC they are enough"
    assert few.next == START + timedelta(days=2)
    world.arrive(1)
    assert isinstance(world.claim(), Due)
    world.finish()
    world.arrive(50)
    world.wait(hours=5)
    soon = world.claim()
    assert isinstance(soon, Waits)
    assert soon.next == START + timedelta(hours=6)
    world.wait(hours=1)
    assert isinstance(world.claim(), Due)
    world.finish()
    world.arrive(1)
    world.wait(days=2, seconds=-1)
    assert isinstance(world.claim(), Waits)
    world.wait(seconds=1)
    patient = world.claim()
    assert isinstance(patient, Due)
    assert patient.reason == "1 of 10 new rows in inbox://taste, the first has waited 2d"
    assert [due.round for due in world.found] == ["nightly-1", "nightly-2", "nightly-3"]


def test_returned_rows_are_no_reason_for_another_round() -> None:
    world = World(FED)
    world.arrive(12)
    first = world.claim()
    world.finish(uses=False)
    world.wait(days=5)
    nothing = world.claim()
    assert isinstance(nothing, Waits)
    assert nothing.why == "0 of 10 new rows in inbox://taste"
    world.arrive(10)
    second = world.claim()
    assert isinstance(first, Due)
    assert isinstance(second, Due)
    assert first.key != second.key


def test_what_a_limit_left_is_enough_for_the_next() -> None:
    """The watermark moved, so all that is above it is new."""
    last = claim("nightly-1", START - timedelta(days=1), newest=100, watermark=0)
    history = History(claims=(last,), verdicts=frozenset({"nightly-1"}))
    left = arrived(70, newest=100, watermark=30)
    (due,) = tick([FED], history, {"taste": left}, START).due
    assert due.round == "nightly-2"


def test_a_clock_with_arrivals_runs_at_ticks_only() -> None:
    world = World(schedule(stream="taste", every="0 3 * * *", when={"new_pairs": 10}))
    world.arrive(10)
    waits = world.claim()
    assert isinstance(waits, Waits)
    assert not waits.passed
    world.wait(hours=15)
    due = world.claim()
    assert isinstance(due, Due)
    assert due.key == "cron/2026-11-21T03:00Z"
    world.finish()
    world.wait(days=1)
    in_vain = world.claim()
    assert isinstance(in_vain, Waits)
    assert in_vain.passed
    # Enough an hour later is for the next tick, not for the one that has passed.
    world.arrive(10)
    world.wait(hours=1)
    assert isinstance(world.claim(), Waits)
    world.wait(hours=23)
    assert isinstance(world.claim(), Due)


def test_a_clock_on_an_empty_stream_passes() -> None:
    world = World(schedule(stream="taste", every="0 3 * * *"))
    world.wait(hours=15)
    found = world.claim()
    assert isinstance(found, Waits)
    assert found.passed
    assert found.why.startswith("nothing waits in inbox://taste at the tick of 2026-11-21 03:00")


def test_after_a_round() -> None:
    judge, tuned = schedule("judge"), schedule("tuned", after="judge")
    both = [judge, tuned]
    before = tick(both, History(), {}, START)
    assert [(d.round, d.key) for d in before.due] == [("judge", AT_ONCE)]
    assert [w.why for w in before.waits] == ["waits for the verdict on judge"]
    then = tick(both, History(verdicts=frozenset({"judge"})), {}, START)
    assert [(d.round, d.key) for d in then.due] == [("tuned", "after/judge")]
    done = claim("tuned", START, schedule="tuned", key="after/judge")
    history = History(claims=(done,), verdicts=frozenset({"judge", "tuned"}))
    end = tick(both, history, {}, START)
    assert [w.why for w in end.waits] == ["has run, and does not repeat"]
    assert not end.due


def test_after_every_round_of_a_template() -> None:
    follower = schedule("check", after=NAME, repeat=True)
    claims = tuple(claim(f"nightly-{n}", START) for n in (1, 2))
    history = History(claims=claims, verdicts=frozenset({"nightly-1", "nightly-2"}))
    (due,) = tick([follower], history, {}, START).due
    assert (due.round, due.key) == ("check-1", "after/nightly-2")
    done = claim("check-1", START, schedule="check", key=due.key)
    history = replace(
        history, claims=(*claims, done), verdicts=history.verdicts | {"check-1"}
    )  # fmt: skip
    assert not tick([follower], history, {}, START).due


def test_after_is_a_condition_beside_a_clock() -> None:
    late = schedule(every="0 3 * * *", after="judge")
    history = History(since={NAME: at("2026-11-19 12:00")})
    assert not tick([late], history, {}, START).due
    (due,) = tick([late], replace(history, verdicts=frozenset({"judge"})), {}, START).due
    assert due.key == "cron/2026-11-20T03:00Z"


def test_a_person_asks() -> None:
    manual = schedule(manual=True)
    (waits,) = tick([manual], History(), {}, START).waits
    assert "keel schedule run-now CAMPAIGN nightly" in waits.why
    due = asked(manual, History(), START)
    assert (due.round, due.key) == ("nightly-1", "manual/2026-11-20T12:00:00Z")
    open_round = History(claims=(claim("nightly-1", START),))
    assert asked(manual, open_round, START).claimed


def test_what_a_person_skipped_is_over_and_the_next_tick_comes() -> None:
    world = World(NIGHTLY, at("2026-11-20 02:00"))
    world.wait(hours=2)
    world.skip()
    found = world.tick()
    assert [one.why for one in found.waits] == ["the next tick is 2026-11-21 03:00 UTC"]
    assert [one.sentence for one in found.skips] == [
        "nightly-1 was skipped by somebody on 2026-11-20 04:00 UTC: bad data "
        "(nightly/cron/2026-11-20T03:00Z)"
    ]
    world.wait(days=1)
    due = world.claim()
    assert isinstance(due, Due)
    assert (due.key, due.round) == ("cron/2026-11-21T03:00Z", "nightly-2")
    # It is the last round that is told of.
    assert world.tick().skips == ()


def test_ticks_that_came_while_the_round_was_open_are_skipped_with_it() -> None:
    world = World(NIGHTLY, at("2026-11-20 02:00"))
    world.wait(hours=2)
    world.claim()
    world.wait(days=3)
    world.skip()
    found = world.look()
    assert isinstance(found, Waits)
    assert found.next == at("2026-11-24 03:00")


def test_what_was_skipped_is_no_verdict_for_those_that_wait_for_one() -> None:
    once = World(schedule("judge", every="0 3 * * *", repeat=False), at("2026-11-20 02:00"))
    once.wait(hours=2)
    once.skip()
    after = schedule("tuned", after="judge")
    found = tick([once.schedule, after], once.history, {}, once.now)
    assert [one.why for one in found.waits] == [
        "was skipped, and does not repeat", "waits for the verdict on judge",
    ]  # fmt: skip


def test_rows_of_a_skipped_round_are_read_by_the_next_and_are_no_reason_for_it() -> None:
    world = World(FED)
    world.arrive(10)
    world.skip()
    world.wait(hours=7)
    world.arrive(9)
    assert world.look().why.startswith("9 of 10 new rows")  # type: ignore[union-attr]
    world.arrive(1)
    due = world.claim()
    assert isinstance(due, Due)
    assert (due.round, due.reason) == ("nightly-2", "10 of 10 new rows in inbox://taste")
    assert world.arrivals().count == 20


Event = tuple[str, int]
events = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.integers(1, 200_000)),
        st.tuples(st.just("arrive"), st.integers(1, 15)),
        st.tuples(st.just("finish"), st.integers(0, 1)),
        st.tuples(st.just("claim"), st.integers(1, 3)),
        st.tuples(st.just("skip"), st.just(1)),
    ),
    max_size=40,
)
kinds = st.sampled_from([
    FED,
    NIGHTLY,
    schedule(stream="taste", every="*/30 * * * *", timezone="Europe/Berlin"),
    schedule(stream="taste", every="0 */4 * * *", when={"new_pairs": 8, "min_interval": "90m"}),
    schedule(every="0 3 * * *", repeat=False),
])  # fmt: skip


@given(kinds, events)
@settings(max_examples=200, deadline=None)
def test_whatever_happens_nothing_is_due_twice(one: object, happened: list[Event]) -> None:
    world = World(one, at("2026-10-20 09:10"))  # type: ignore[arg-type]
    for what, number in happened:
        if what == "wait":
            world.wait(seconds=number)
        elif what == "arrive":
            world.arrive(number)
        elif what == "finish":
            world.finish(uses=bool(number))
        elif what == "skip":
            rows = world.watermark
            world.skip()
            assert world.watermark == rows
            after = world.look()
            assert isinstance(after, Waits) or not after.claimed
        else:
            # However many look, at most one finds something new, and the others find that.
            found = [world.claim() for _ in range(number)]
            assert sum(isinstance(f, Due) and not f.claimed for f in found) <= 1
            assert len({f.key for f in found if isinstance(f, Due)}) <= 1
        over = world.history.verdicts | world.history.skipped.keys()
        opened = [c for c in world.history.claims if c.round not in over]
        assert len(opened) <= 1
    keys, names = [due.key for due in world.found], [due.round for due in world.found]
    assert len(set(keys)) == len(keys)
    assert len(set(names)) == len(names)
    times = [c.claimed for c in world.history.claims]
    gap = (
        world.schedule.settings.when.min_interval if world.schedule.settings.when else timedelta(0)
    )
    assert all(later - earlier >= gap for earlier, later in pairwise(times))


@given(kinds, st.integers(0, 400), st.integers(0, 400_000), st.integers(0, 400_000))
@settings(max_examples=150, deadline=None)
def test_due_stays_due(one: object, rows: int, first: int, more: int) -> None:
    """Time and further arrivals alone never take back what is due, nor its key where it is not a tick."""
    world = World(one, at("2026-10-20 09:10"))  # type: ignore[arg-type]
    world.arrive(rows)
    world.wait(seconds=first)
    before = world.look()
    world.wait(seconds=more)
    world.arrive(3)
    if isinstance(before, Due):
        after = world.look()
        assert isinstance(after, Due)
        assert after.key == before.key or before.key.startswith("cron/")


@given(kinds, st.integers(0, 40), st.integers(0, 400_000))
@settings(max_examples=100, deadline=None)
def test_who_waits_for_time_is_told_until_when(one: object, rows: int, seconds: int) -> None:
    """Nothing falls due before the moment that was named, with nothing but time passing."""
    world = World(one, at("2026-10-20 09:10"))  # type: ignore[arg-type]
    world.arrive(rows)
    world.wait(seconds=seconds)
    found = world.claim()
    if isinstance(found, Waits) and found.next is not None:
        assert found.next > world.now
        world.now = found.next - timedelta(milliseconds=1)
        assert isinstance(world.look(), Waits)
    elif isinstance(found, Waits):
        world.wait(days=1000)
        assert isinstance(world.look(), Waits)


def test_other_streams_do_not_count() -> None:
    assert not tick([FED], History(), {"other": arrived(99)}, START).due
    assert tick([FED], History(), {"taste": arrived(99), "other": Arrivals()}, START).due

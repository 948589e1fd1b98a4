"""Clocks that were ahead for a while: what they wrote down stops nothing."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from align.schedule.due import Due, History, Schedule, Waits, tick
from tests.unit.align.schedule.test_schedule_due import FED, NIGHTLY, kinds
from tests.unit.schedules import START, World, arrived, at


def test_a_clock_that_was_ahead_does_not_stop_the_ticks() -> None:
    world = World(NIGHTLY, at("2026-11-20 12:00"))
    world.now = at("2030-01-01 03:00")
    world.claim()
    world.finish()
    world.now = at("2026-11-20 13:00")
    waits = world.claim()
    assert isinstance(waits, Waits)
    assert waits.next == at("2026-11-21 03:00")
    world.now = waits.next
    due = world.claim()
    assert isinstance(due, Due)
    assert (due.key, due.round) == ("cron/2026-11-21T03:00Z", "nightly-2")


def test_a_tick_that_came_too_early_does_not_come_again() -> None:
    """The clock was a day ahead for a while; at the moment that is named something falls due."""
    world = World(NIGHTLY, at("2026-11-20 12:00"))
    world.now = at("2026-11-22 03:00:30")
    world.claim()
    world.finish()
    world.now = at("2026-11-21 12:00")
    assert world.claim().key == "cron/2026-11-21T03:00Z"  # type: ignore[union-attr]
    world.finish()
    waits = world.claim()
    assert isinstance(waits, Waits)
    assert waits.next == at("2026-11-23 03:00")
    world.now = at("2026-11-22 03:00:10")
    assert isinstance(world.claim(), Waits)
    world.now = at("2026-11-23 03:00")
    assert world.claim().key == "cron/2026-11-23T03:00Z"  # type: ignore[union-attr]


def test_rows_of_a_clock_that_was_ahead_have_waited_long_enough() -> None:
    ahead = arrived(3, at("2030-01-01 00:00"))
    (due,) = tick([FED], History(), {"taste": ahead}, START).due
    assert due.reason == (
        "3 of 10 new rows in inbox://taste, the first is stamped 2030-01-01 00:00 UTC, when a clock was "
        "ahead"
    )


@given(kinds, st.integers(60, 4 * 365 * 86400), st.integers(0, 86400))
@settings(max_examples=150, deadline=None)
def test_a_schedule_goes_on_after_the_clock_was_set_back(
    one: Schedule, ahead: int, later: int
) -> None:
    """Within days on which enough arrives another round falls due, and never one key twice."""
    world = World(one, at("2026-10-20 09:10"))
    world.wait(seconds=ahead)
    world.arrive(10)
    world.claim()
    world.finish()
    before = len(world.found)
    world.now = at("2026-10-20 09:10") + timedelta(seconds=later)
    for _ in range(4):
        world.arrive(10)
        found = world.claim()
        if isinstance(found, Waits) and found.next is not None:
            assert found.next > world.now
            assert found.next - world.now <= timedelta(days=3)
        world.wait(days=1)
    keys = [due.key for due in world.found]
    assert len(set(keys)) == len(keys)
    assert len(keys) > before or not one.settings.repeats

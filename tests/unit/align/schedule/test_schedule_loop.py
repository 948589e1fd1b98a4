"""The loop with a clock of its own: weeks pass while it sleeps."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from align.errors import RunError
from align.schedule.due import Due, Tick
from align.schedule.loop import keep, pause_after
from tests.unit.schedules import START, World, schedule

POLL_S = 60.0


class Stopped(Exception):
    pass


class Keeper:
    """Runs the loop on a `World` for so long."""

    def __init__(self, world: World, *, until: timedelta, codes: Callable[[int], int]) -> None:
        self.world, self.until, self.codes = world, START + until, codes
        self.runs: list[datetime] = []
        self.pauses: list[float] = []
        self.said: list[str] = []
        self.broken = 0

    def look(self, now: datetime) -> Tick:
        if self.broken:
            self.broken -= 1
            raise RunError("the ledger could not be used")
        assert now == self.world.now
        found = self.world.claim()
        return (
            Tick(due=(found,), waits=()) if isinstance(found, Due) else Tick(due=(), waits=(found,))
        )

    def run(self) -> int:
        self.runs.append(self.world.now)
        code = self.codes(len(self.runs))
        if code in (0, 3):
            self.world.finish()
        return code

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0.0
        self.pauses.append(seconds)
        self.world.wait(seconds=seconds)
        if self.world.now >= self.until:
            raise Stopped

    def keep(self) -> None:
        with pytest.raises(Stopped):
            keep(
                self.look, self.run, poll_s=POLL_S,
                now=lambda: self.world.now, sleep=self.sleep, say=self.said.append,
            )  # fmt: skip


def test_it_runs_at_ticks_and_sleeps_no_longer_than_it_polls() -> None:
    keeper = Keeper(World(schedule(every="30 3 * * *")), until=timedelta(days=3), codes=lambda n: 0)
    keeper.keep()
    assert [f"{run:%d %H:%M:%S}" for run in keeper.runs] == [
        f"{day} 03:30:00" for day in (21, 22, 23)
    ]
    assert max(keeper.pauses) == POLL_S
    assert [line for line in keeper.said if line.startswith("nightly-2")] == [
        "nightly-2: tick of 2026-11-22 03:30 UTC (nightly/cron/2026-11-22T03:30Z)"
    ]
    # What it waits for is said once, and again after a round.
    assert sum(line.startswith("nothing is due") for line in keeper.said) == 4


def test_a_failing_round_is_taken_up_again_after_longer_and_longer() -> None:
    codes = {1: 1, 2: 2, 3: 1}
    world = World(schedule(every="0 13 * * *"))
    world.wait(hours=1)
    keeper = Keeper(world, until=timedelta(hours=3), codes=lambda n: codes.get(n, 0))
    keeper.keep()
    gaps = [
        (b - a).total_seconds() for a, b in zip(keeper.runs, keeper.runs[1:], strict=False)
    ]  # fmt: skip
    assert gaps == [POLL_S, 2 * POLL_S, 4 * POLL_S]
    assert len(world.found) == 1


def test_a_rejected_round_is_over_and_another_runner_is_left_alone() -> None:
    world = World(schedule(every="0 13 * * *"))
    world.wait(hours=1)
    keeper = Keeper(world, until=timedelta(hours=3), codes=lambda n: {1: 4}.get(n, 3))
    keeper.keep()
    assert [(run - START).total_seconds() for run in keeper.runs] == [3600.0, 3600.0 + POLL_S]
    assert not any("exit code" in line for line in keeper.said)


def test_a_store_that_is_away_for_a_while_is_waited_for() -> None:
    keeper = Keeper(
        World(schedule(every="0 13 * * *")), until=timedelta(hours=2), codes=lambda n: 0
    )
    keeper.broken = 2
    keeper.keep()
    assert keeper.pauses[:2] == [POLL_S, 2 * POLL_S]
    assert keeper.said[0] == "error: the ledger could not be used"
    assert len(keeper.runs) == 1


def test_pauses_have_an_end() -> None:
    assert pause_after(50, POLL_S) == 3600.0
    assert pause_after(1, 7200.0) == 7200.0

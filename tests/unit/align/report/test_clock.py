"""Wall time: every second is counted once, and the parts of a round sum to the whole."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.gate.evidence import Evidence
from align.report.records.wall_time import MEANINGS, attempt_seconds, took, wall_time
from align.round.times.clock import MEASURING, Phase, PhaseClock, phase
from align.round.times.record import AttemptTimes
from align.store.run_folder import RunFolder
from tests.unit.stores import GOOD, made

PHASES = st.sampled_from([phase for phase in get_args(Phase) if phase != "other"])
TREES: Any = st.recursive(
    st.just([]), lambda inner: st.lists(st.tuples(PHASES, inner), max_size=4), max_leaves=12
)


class Time:
    """A clock's source that moves by 1, 2, 3, ... seconds from look to look."""

    def __init__(self) -> None:
        self.now, self.looks = 0.0, 0

    def __call__(self) -> float:
        self.now += self.looks
        self.looks += 1
        return self.now


@given(TREES)
def test_phases_sum_to_the_time_that_passed(tree: Any) -> None:
    time = Time()
    clock = PhaseClock(time)

    def walk(phases: Any) -> None:
        for name, inner in phases:
            with clock.phase(name):
                walk(inner)

    walk(tree)
    assert math.fsum(clock.seconds().values()) == time.now
    assert all(seconds >= 0 for seconds in clock.seconds().values())


def test_a_phase_inside_another_pauses_it() -> None:
    ticks = iter([0.0, 1.0, 4.0, 6.0, 13.0, 13.0])
    clock = PhaseClock(lambda: next(ticks))
    with clock.phase("learning"), clock.phase("records"):
        pass
    assert clock.seconds() == {"other": 1.0, "learning": 3.0 + 7.0, "records": 2.0}


def test_a_phase_that_fails_ends_all_the_same() -> None:
    clock = PhaseClock(Time())
    with ExitStack() as stack, pytest.raises(ValueError):
        stack.enter_context(clock.phase("sampling"))
        with clock.phase("scoring"):
            raise ValueError
    before = clock.seconds()
    after = clock.seconds()
    assert after["other"] > before["other"]
    assert {k: v for k, v in after.items() if k != "other"} == {
        k: v for k, v in before.items() if k != "other"
    }


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(-1, 9)), max_size=6))
def test_a_suite_takes_no_more_than_was_measured(suites: list[tuple[str, float]]) -> None:
    time = Time()
    clock = PhaseClock(time)
    with clock.phase("measuring"):
        pass
    for name, seconds in suites:
        clock.measured(name, seconds)
    seconds = clock.seconds()
    assert math.fsum(seconds.values()) == pytest.approx(time.now)
    assert all(value >= 0 for value in seconds.values())


def test_functions_count_on_the_clock_that_runs() -> None:
    @phase("learning")
    def learn() -> str:
        with phase("records"):
            return "done"

    assert learn() == "done"  # No clock runs.
    clock = PhaseClock(Time())
    with clock.running():
        assert learn() == learn() == "done"
    before = clock.seconds()
    assert before["learning"] > 0 and before["records"] > 0
    assert learn() == "done"
    assert {k: v for k, v in clock.seconds().items() if k != "other"} == {
        k: v for k, v in before.items() if k != "other"
    }


def test_another_thread_counts_nothing() -> None:
    clock = PhaseClock(Time())
    with clock.running():
        thread = Thread(target=phase("scoring")(lambda: None))
        thread.start()
        thread.join()
    assert clock.seconds().keys() == {"other"}


def test_a_restart_keeps_what_was_before() -> None:
    ticks = iter([0.0, 2.0, 3.0])
    clock = PhaseClock(lambda: next(ticks))
    clock.restart()
    assert (clock.before, clock.seconds()) == ({"other": 2.0}, {"other": 1.0})


def test_every_phase_is_explained() -> None:
    assert set(get_args(Phase)) <= MEANINGS.keys()


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"seconds": 3, "before": {}}', '{"seconds": {"a": "x"}, "before": {}}', "{}"],
)
def test_a_damaged_record_is_none(tmp_path: Path, text: str) -> None:
    RunFolder(tmp_path).times.write_text(text)
    assert AttemptTimes.load(tmp_path) is None
    assert AttemptTimes.load(tmp_path / "nowhere") is None


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    times = AttemptTimes(seconds={"learning": 1.5}, before={"start-up": 20.0})
    times.save(tmp_path / "attempt-1")
    assert AttemptTimes.load(tmp_path / "attempt-1") == times
    assert [path.name for path in (tmp_path / "attempt-1").iterdir()] == ["times.json"]


# a round's wall time


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evidence]:
    yield made(tmp_path_factory.mktemp("times"), GOOD)


SECONDS = st.dictionaries(
    st.sampled_from([*get_args(Phase), f"{MEASURING}general", f"{MEASURING}round0", "later"]),
    st.floats(0, 1e5),
    max_size=8,
)


@given(recorded=st.lists(SECONDS, min_size=1, max_size=3), lasted=st.integers(0, 9000))
def test_parts_sum_to_the_whole(
    store: Evidence, recorded: list[dict[str, float]], lasted: int
) -> None:
    """The whole is what the ledger says, or what was counted where that is more."""
    (record,) = store.ledger.rounds()
    attempts = []
    for number, seconds in enumerate(recorded, start=1):
        hours, rest = divmod(lasted, 3600)
        end = f"2030-01-01T{hours:02d}:{rest // 60:02d}:{rest % 60:02d}+00:00"
        attempts.append(
            replace(record, attempt=number, started="2030-01-01T00:00:00+00:00", ended=end)
        )
        folder = store.folder / "rounds/00-round0" / f"attempt-{number}"
        AttemptTimes(seconds=seconds, before={"start-up": 1.0}).save(folder)
    time = wall_time(store, attempts)
    assert math.fsum(part.seconds for part in time.parts) == pytest.approx(time.seconds)
    wholes = [max(lasted, math.fsum(seconds.values())) for seconds in recorded]
    assert time.seconds == pytest.approx(math.fsum(wholes))
    names = [part.name for part in time.parts]
    assert len(names) == len(set(names))
    assert math.fsum(part.seconds for part in time.suites) <= time.of("measuring") + 1e-6
    assert [(part.name, part.seconds) for part in time.before] == [("start-up", len(recorded))]


def test_a_round_explains_itself(store: Evidence) -> None:
    """44 s with 6 s of updates: worked by hand."""
    (record,) = store.ledger.rounds()
    record = replace(record, started="2030-01-01T00:00:00+00:00", ended="2030-01-01T00:00:44+00:00")
    assert attempt_seconds(record, None) == 44.0
    seconds = {
        "sampling": 9.0, "scoring": 0.5, "learning": 6.0, f"{MEASURING}general": 12.0,
        f"{MEASURING}round0": 8.0, "measuring": 1.0, "start-up": 4.0, "parity probe": 0.5,
    }  # fmt: skip
    AttemptTimes(seconds=seconds).save(store.folder / "rounds/00-round0/attempt-1")
    time = wall_time(store, [record])
    assert (time.of("measuring"), time.of("other")) == (21.0, 3.0)
    assert time.sentence == (
        "44 s: 21 s measuring (general 12 s, round0 8 s), 9 s sampling, 6 s learning, "
        "4 s start-up, 3 s other, 1 s in smaller parts"
    )


def test_an_older_store_says_what_its_steps_recorded(tmp_path: Path) -> None:
    """Three steps of half a second; what nothing on record says is called so."""
    store = made(tmp_path, GOOD)
    (record,) = store.ledger.rounds()
    path = store.folder / "rounds/00-round0/attempt-1/metrics.jsonl"
    step = {"time/update_s": 0.5, "time/sampling_s": 1.0, "sync/seconds": 0.25}
    path.write_text("".join(json.dumps({"step": i, **step}) + "\n" for i in range(3)))
    record = replace(record, started="2030-01-01T00:00:00+00:00", ended="2030-01-01T00:00:10+00:00")
    time = wall_time(store, [record])
    assert {part.name: part.seconds for part in time.parts} == {
        "sampling": 3.0, "learning": 1.5, "weight sync": 0.75, "not recorded": 4.75,
    }  # fmt: skip
    assert time.seconds == 10.0


def test_an_attempt_that_never_began_takes_no_time(store: Evidence) -> None:
    (record,) = store.ledger.rounds()
    time = wall_time(store, [replace(record, attempt=9, started=None, ended=None)])
    assert (time.seconds, time.parts, time.sentence) == (0.0, (), "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.004, "0 s"),
        (6.04, "6 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (61, "1 min 1 s"),
    ],
)
def test_short_times_have_a_decimal(seconds: float, text: str) -> None:
    assert took(seconds) == text

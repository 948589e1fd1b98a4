"""Progress that people see while a campaign runs: the state of measuring, and the parts of a step's
time."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from align.campaign import run_campaign
from align.gate.measurement.evaluate import evaluate
from align.gate.measurement.progress import CountedEngine, SuiteMeter, SuiteProgress
from align.report import progress as display
from align.report.progress import TIMES, LiveProgress, status_of
from align.report.trackers.observer import TrackedObserver
from rollouts.engines.protocol import SampleResult, ScoreRequest
from rollouts.engines.scripted import ScriptedEngine
from tests.unit.align.gate.suites.test_gate_suites import ENCODER, answering, build, text_file
from tests.unit.align.gate.suites.test_gate_suites import campaign as suites_campaign
from tests.unit.campaigns import Watcher, campaign
from tests.unit.hf_engine import HFEngine


class Stream:
    """A ticket whose answers come two at a time."""

    def __init__(self, results: Sequence[SampleResult]) -> None:
        self._results = list(results)

    def __call__(self) -> list[SampleResult]:
        return self._results

    def arrivals(self) -> Iterator[list[tuple[int, SampleResult]]]:
        pairs = list(enumerate(self._results))
        for first in range(0, len(pairs), 2):
            yield pairs[first : first + 2]


class Streaming:
    """An engine that streams samples and scores, over one that does not."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def submit(self, requests: Any) -> Stream:
        return Stream(self._engine.generate(requests))

    def scores(self, requests: Sequence[ScoreRequest]) -> Iterator[list[tuple[int, Any]]]:
        """The last first, as engines that are unequally quick would."""
        yield from ([pair] for pair in reversed(list(enumerate(self._engine.score(requests)))))


def test_items_are_counted_as_their_answers_come(tmp_path: Path) -> None:
    general, _ = build(suites_campaign())
    seen: list[SuiteProgress] = []
    streaming: Any = Streaming(answering(general, right=0.4))
    watched = evaluate(streaming, [general], ENCODER, "snap", seed=7, tell=seen.append)
    assert watched == evaluate(answering(general, right=0.4), [general], ENCODER, "snap", seed=7)
    assert [one.done for one in seen] == [0, *range(2, 31, 2), 30]
    assert {(one.suite, one.number, one.suites, one.total) for one in seen} == {
        ("general", 1, 1, 30)
    }
    assert [one.stage for one in seen[-2:]] == ["scoring", "measured"]


def test_windows_of_text_are_counted_in_any_order(tmp_path: Path) -> None:
    text, _ = build(suites_campaign(suites=[text_file(tmp_path / "t.txt", 80)]))
    seen: list[SuiteProgress] = []
    streaming: Any = Streaming(scorer())
    watched = evaluate(streaming, [text], ENCODER, "snap", seed=0, tell=seen.append)
    assert watched == evaluate(scorer(), [text], ENCODER, "snap", seed=0)
    assert [one.done for one in seen] == [*range(9), 8]


def scorer() -> Any:
    """An engine that scores by a rule."""
    return ScriptedEngine(
        lambda ids, seed: ((), ()),
        scorer=lambda prompt, rest: [-0.1 * (sum(rest) + i) for i in range(len(rest))],
    )


def test_a_suite_that_asks_again_does_not_fall_behind() -> None:
    """A harness task asks some items a second time, and several questions of each."""
    seen: list[SuiteProgress] = []
    meter = SuiteMeter(suite="s", number=1, suites=1, items=10, tell=seen.append)
    for asked in (40, 8):
        meter.ask(asked)
        meter.answer(asked // 2)
        meter.answer(asked // 2)
    done = [one.done for one in seen]
    assert done == sorted(done)
    assert done[:3] == [0, 5, 10]


def progress(done: int, seconds: float, stage: Any = "asking", number: int = 1) -> SuiteProgress:
    return SuiteProgress(
        suite="general", number=number, suites=2, done=done, total=90, seconds=seconds, stage=stage
    )


def test_rate_and_time_left() -> None:
    assert (progress(30, 10.0).rate, progress(30, 10.0).left_s) == (3.0, 20.0)
    assert progress(30, 10.0).speed == "3 items/s, 20 s left"
    assert progress(0, 10.0).speed == "waiting for the first answers"
    assert progress(0, 0.0).left_s is None
    assert progress(90, 30.0, "scoring").speed == "scoring the answers"


def shown(*, terminal: bool) -> tuple[LiveProgress, io.StringIO]:
    stream = io.StringIO()
    return LiveProgress(Console(file=stream, force_terminal=terminal, width=140)), stream


def test_a_log_has_a_line_now_and_then_and_one_for_each_snapshot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(display, "perf_counter", lambda: clock[0])
    live, stream = shown(terminal=False)
    for second in range(1, 31):
        clock[0] = float(second)
        live.on_measuring("base", progress(second, float(second)))
    live.on_measuring("base", progress(90, 45.0, "measured"))
    live.on_measuring("base", progress(90, 45.0, "measured", number=2))
    assert stream.getvalue().splitlines() == [
        "[  10.0s] measuring base on general (1 of 2): 10 of 90 items, 1 items/s, 1 min 20 s left",
        "[  20.0s] measuring base on general (1 of 2): 20 of 90 items, 1 items/s, 1 min 10 s left",
        "[  30.0s] measuring base on general (1 of 2): 30 of 90 items, 1 items/s, 1 min left",
        "[  30.0s] measured base: 2 suites, 180 items in 1 min 30 s, 2 items/s",
    ]


def test_a_terminal_has_a_bar_that_goes_when_the_suite_is_done() -> None:
    live, stream = shown(terminal=True)
    with live:
        live.on_measuring("base", progress(30, 10.0))
        live._bar.refresh()
        assert "measuring base on general (1 of 2)" in stream.getvalue()
        assert "30/90" in stream.getvalue()
        live.on_measuring("base", progress(90, 30.0, "measured"))
        assert live._bar.task_ids == []


def test_step_lines_say_where_the_seconds_went(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = {
        "reward/mean": 0.5, "time/sampling_s": 1.25, "time/scoring_s": 0.04, "time/update_s": 2.0,
        "sync/seconds": 0.31, "loss": 3.0,
    }  # fmt: skip
    expected = "reward 0.500  seconds: sampling 1.2, scoring 0.0, learning 2.0, sync 0.3"
    assert status_of(metrics) == expected
    assert status_of({"reward/mean": 0.5}) == "reward 0.500"
    clock = [0.0]
    monkeypatch.setattr(display, "perf_counter", lambda: clock[0])
    live, stream = shown(terminal=False)
    plan: Any = SimpleNamespace(
        index=0, attempt=1, title="sort", spec=SimpleNamespace(steps=40, name="sort")
    )
    for step in range(40):  # Slow steps at first, then quick ones.
        clock[0] += 12.0 if step < 3 else 0.1
        live.on_step(plan, step, metrics)
    steps = [line.split()[4] for line in stream.getvalue().splitlines()]
    assert steps == ["1/40", "2/40", "3/40", "16/40", "31/40", "40/40"]


def test_a_campaign_tells_of_every_snapshot_it_measures(tmp_path: Path) -> None:
    class Measuring(Watcher):
        def __init__(self) -> None:
            super().__init__()
            self.measured: list[tuple[str, str]] = []
            self.metrics: list[dict[str, float]] = []

        def on_measuring(self, what: str, progress: SuiteProgress) -> None:
            if progress.stage == "measured":
                self.measured.append((what, progress.suite))

        def on_step(self, plan: Any, step: int, metrics: Any) -> None:
            self.metrics.append(dict(metrics))

    watcher = Measuring()
    config = campaign(tmp_path)
    observer = TrackedObserver(watcher, [])
    run_campaign(config, start_engine=lambda _, model, __: HFEngine(model), observer=observer)
    suites = ["general", "first", "second"]
    assert watcher.measured == [(what, s) for what in ("base", "first", "second") for s in suites]
    for metrics in watcher.metrics:
        assert TIMES.keys() <= metrics.keys()
        assert all(metrics[name] >= 0.0 for name in TIMES)
        assert metrics["time/sampling_s"] > 0.0


def test_counting_closes_nothing() -> None:
    class Engine:
        closed = False

        def close(self) -> None:
            self.closed = True

    engine: Any = Engine()
    meter = SuiteMeter(suite="s", number=1, suites=1, items=1, tell=lambda _: None)
    CountedEngine(engine, meter).close()
    assert not engine.closed

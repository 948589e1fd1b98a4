"""Runs from Python: own rewards in their workers, observers, interrupts, and results as data frames.

The engine is the transformers backend in this process, so every part is real and takes a second.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from pandas.testing import assert_frame_equal

import align
from align.report.summary_numbers import SUMMARY
from align.store.ledger.amendments import amendments_of
from tests.unit.campaigns import raw_campaign


def preference(word: str) -> Any:
    def wanted(completions: Sequence[str], **columns: Any) -> list[float]:
        assert __name__.startswith("keel_reward_"), "it runs from its file, in a worker"
        return [float(text.count(word)) for text in completions]

    return wanted


def campaign(folder: Path, reward: Any = None, **changes: Any) -> align.Campaign:
    """Two short rounds; the first with a reward of one's own."""
    values = raw_campaign(folder, **changes)
    values["rollouts"] = {"backend": "transformers"}
    values["rounds"][0]["rewards"] = [align.Reward(reward or preference("1"))]
    return align.Campaign(**values)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[align.Campaign, list[Any]]:
    """A campaign that ran, and its events."""
    events: list[Any] = []
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "user"))
        return align.run(campaign(folder), events.append), events


def of(events: Sequence[Any], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def test_an_observer_is_told_of_steps_measurements_and_verdicts(
    finished: tuple[align.Campaign, list[Any]],
) -> None:
    ran, events = finished
    steps = of(events, align.StepEvent)
    assert [(e.round, e.step, e.steps, e.attempt) for e in steps] == [
        ("first", 0, 2, 1), ("first", 1, 2, 1), ("second", 0, 2, 1), ("second", 1, 2, 1),
    ]  # fmt: skip
    assert steps[0].metrics["reward/mean"] == ran.steps("first")["reward/mean"][0]
    verdicts = of(events, align.VerdictEvent)
    assert [(v.round, v.accepted) for v in verdicts] == [("first", True), ("second", True)]
    assert verdicts[-1].candidate == ran.production
    assert "first: reward wanted: process (1 worker, 120 s a batch, 4 GiB)" in map(str, events)
    measured = of(events, align.MeasuringEvent)
    assert {(e.suite, e.total) for e in measured} == {
        ("general", 30),
        ("first", 30),
        ("second", 30),
    }
    assert str(steps[1]).startswith("first step 2/2  reward ")
    assert str(verdicts[0]).startswith("first: accepted")


def test_results_are_data_frames(finished: tuple[align.Campaign, list[Any]]) -> None:
    ran, events = finished
    matrix = ran.matrix()
    assert list(matrix.index) == ["base", "first", "second"]
    assert list(matrix.columns) == ["general", "first", "second"]
    assert matrix.loc["first", "general"] == ran.items("first", "general")["value"].mean()
    assert ran.items("base", "general").shape == (30, 5)
    assert ran.items("base", "general").loc[:, "answer"].str.len().gt(0).all()

    rounds = ran.rounds()
    assert list(rounds.index) == ["first", "second"]
    assert list(rounds["state"]) == ["accepted", "accepted"]
    assert rounds["candidate"]["first"] == rounds["parent"]["second"]
    assert (rounds["ended"] > rounds["started"]).all()

    verdict = ran.verdict("first")
    value = verdict[(verdict["what"] == "value") & (verdict["role"] == "target")]
    gained = matrix.loc["first", "first"] - matrix.loc["base", "first"]
    assert value["difference"].item() == pytest.approx(gained)
    assert (verdict["low"] <= verdict["difference"]).all()
    assert (
        verdict.attrs["accepted"]
        and verdict.attrs["outcome"] == of(events, align.VerdictEvent)[0].outcome
    )

    steps = ran.steps("second")
    assert list(steps.index) == [0, 1] and steps.index.name == "step"
    assert steps["kl/general/base"].notna().all() or "kl/general/base" not in steps
    assert list(ran.summary().index) == list(SUMMARY)
    assert ran.explain("first").startswith("first: accepted")


def test_a_store_is_read_without_its_campaign(finished: tuple[align.Campaign, list[Any]]) -> None:
    ran, _ = finished
    store = align.open_store(ran.config.folder)
    for read in ("matrix", "rounds", "summary"):
        assert getattr(store, read)().equals(getattr(ran, read)())
    for name in ("first", "second"):
        assert_frame_equal(store.verdict(name), ran.verdict(name))
        assert_frame_equal(store.steps(name), ran.steps(name))
    assert store.production == ran.production
    assert store.explain("second") == ran.explain("second")


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda ran: ran.verdict("frist"), ("no round 'frist'", "'first'")),
        (lambda ran: ran.steps("third"), ("no round 'third'", "second")),
        (lambda ran: ran.items("first", "generel"), ("suite 'generel'", "'general'")),
    ],
)
def test_a_wrong_name_gets_the_nearest(
    finished: tuple[align.Campaign, list[Any]], read: Any, words: tuple[str, ...]
) -> None:
    with pytest.raises(align.UserError) as caught:
        read(finished[0])
    assert all(word in str(caught.value) for word in words)


class Stops:
    """Observing object that interrupts as a person does, after a step of the first round."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.notes: list[str] = []

    def on_note(self, event: align.NoteEvent) -> None:
        self.notes.append(event.text)

    def on_step(self, event: align.StepEvent) -> None:
        if (event.round, event.step) == ("first", self.step):
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt: a shell starts what runs in the background without it."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_run_goes_on_and_ends_as_one_that_was_not(
    tmp_path: Path, finished: tuple[align.Campaign, list[Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    values = {"defaults": {**raw_campaign(tmp_path)["defaults"], "checkpoint_every": 1}}
    stops = Stops(0)
    with pytest.raises(KeyboardInterrupt):
        campaign(tmp_path, **values).run(stops)
    assert stops.notes[-1].startswith("interrupted: finished rounds are kept")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    threads, folder = threading.active_count(), os.getcwd()

    again, later = campaign(tmp_path, **values), Stops(-1)
    again.run(later)
    assert "round first goes on from step 1" in later.notes
    assert_frame_equal(again.matrix(), finished[0].matrix())
    assert again.rounds()["attempt"]["first"] == 2
    assert list(again.steps("first").index) == [0, 1]

    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert (threading.active_count(), os.getcwd()) == (threads, folder)
    assert capfd.readouterr() == ("", ""), "a library prints nothing"


class Ends(Stops):
    """Observing object that ends the run as a service manager does."""

    def on_step(self, event: align.StepEvent) -> None:
        if event.step == self.step:
            signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def default_sigterm() -> Iterator[None]:
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.usefixtures("default_sigterm")
def test_sigterm_ends_a_run_in_order_and_leaves_nothing_running(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before, threads = children(), threading.active_count()
    ends = Ends(0)
    with pytest.raises(SystemExit) as ended:
        campaign(tmp_path).run(ends)
    assert ended.value.code == 128 + signal.SIGTERM
    assert ends.notes[-1].startswith("interrupted: finished rounds are kept")
    assert children() == before and threading.active_count() == threads
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert campaign(tmp_path).rounds()["state"]["first"] == "failed"
    assert list(campaign(tmp_path).run().rounds()["state"]) == ["accepted", "accepted"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("default_sigterm")
def test_a_program_that_handles_sigterm_keeps_its_handler(tmp_path: Path) -> None:
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    handler = signal.getsignal(signal.SIGTERM)
    ran = campaign(tmp_path).run(Ends(0))
    assert received == [signal.SIGTERM, signal.SIGTERM]
    assert list(ran.rounds()["state"]) == ["accepted", "accepted"]
    assert signal.getsignal(signal.SIGTERM) is handler


def children() -> set[int]:
    """Return the processes that this one has started and that still run."""
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "adapter"])
def test_a_policy_is_loaded_as_transformers_has_it(tmp_path: Path, lora: Any) -> None:
    import torch

    policy = {"model": "demo://digits", **({"lora": lora} if lora else {})}
    ran = campaign(tmp_path, policy=policy).run()
    model, tokenizer = ran.load_policy("first", dtype=torch.float64)
    base, _ = ran.load_policy("base", dtype=torch.float64)
    again, _ = align.load_policy(f"{ran.config.folder}#first", dtype=torch.float64)
    assert not model.training
    ids = tokenizer("12", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = [each(input_ids=ids).logits for each in (model, again, base)]
    assert logits[0].dtype == torch.float64
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2]), "the round has changed the policy"
    with pytest.raises(align.UserError, match="no snapshot 'frist'"):
        ran.load_policy("frist")


def test_a_function_that_changed_is_noticed_when_the_run_goes_on(tmp_path: Path) -> None:
    campaign(tmp_path, preference("1")).run()
    same: list[Any] = []
    unchanged = campaign(tmp_path, preference("1")).run(same.append)
    assert [str(event) for event in same] == ["no round is due; nothing to run"]
    assert amendments_of(unchanged.evidence.ledger) == []

    events: list[Any] = []
    changed = campaign(tmp_path, preference("2")).run(events.append)
    assert str(events[0]).startswith("the campaign file was amended: wanted.py: code ")
    (amendment,) = amendments_of(changed.evidence.ledger)
    assert amendment.changes == (str(events[0]).partition("amended: ")[2],)


def test_campaigns_run_one_after_another_and_keep_apart(tmp_path: Path) -> None:
    events: dict[str, list[Any]] = {"1": [], "7": []}
    for digit in ("1", "7"):
        campaign(tmp_path / digit, preference(digit)).run(events[digit].append)
    rewards = {
        digit: [e.metrics["reward/mean"] for e in of(told, align.StepEvent) if e.round == "first"]
        for digit, told in events.items()
    }
    assert rewards["1"] != rewards["7"]


def test_an_observer_that_fails_ends_the_run_in_order(tmp_path: Path) -> None:
    def fails(event: Any) -> None:
        if isinstance(event, align.StepEvent):
            raise ZeroDivisionError("of the observer")

    with pytest.raises(ZeroDivisionError, match="of the observer"):
        campaign(tmp_path).run(fails)
    assert campaign(tmp_path).rounds()["state"]["first"] == "failed"
    assert list(campaign(tmp_path).run().rounds()["state"]) == ["accepted", "accepted"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"observer": 3}, ("type int cannot observe", "on_step")),
        ({"in_process": True, "address": "10.0.0.1:6379"}, ("a Ray cluster is named",)),
    ],
)
def test_wrong_arguments_are_refused_before_anything_starts(
    tmp_path: Path, arguments: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(align.UserError) as caught:
        align.run(campaign(tmp_path), **arguments)
    assert all(word in str(caught.value) for word in words)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("rollouts", "reason"),
    [
        ({"backend": "vllm"}, "which needs a process of its own"),
        ({"backend": "transformers", "engines": 2}, "one process has one"),
    ],
)
def test_engines_that_cannot_share_the_process_say_why(
    tmp_path: Path, rollouts: dict[str, Any], reason: str
) -> None:
    wanted = align.Campaign(**raw_campaign(tmp_path, rollouts=rollouts))
    with pytest.raises(align.UserError, match=reason):
        wanted.run(in_process=True)


def test_a_broken_reward_is_told_by_the_check_and_writes_nothing(tmp_path: Path) -> None:
    def broken(completions: Sequence[str], **columns: Any) -> list[float]:
        return [1.0 / 0 for _ in completions]

    with pytest.raises(align.UserError, match="ZeroDivisionError"):
        campaign(tmp_path, broken).check()
    assert not (tmp_path / "store").exists()
    assert campaign(tmp_path).check().summary == "2 rounds, 3 suites, 120 prompts"

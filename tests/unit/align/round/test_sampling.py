"""The rollouts of every step: when they are asked for, of which weights, and which are asked again."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.round import round as round_module
from align.round import sampler as sampler_module
from align.round.rollout_table import find_table, load_records
from align.round.sampler import PendingStep, StepSampler, fresher_share
from rollouts.engines.protocol import SampleRequest, Ticket, WeightUpdate
from rollouts.errors import RunError
from rollouts.types import Completion, Prompt, RolloutGroup, ScoredGroup, WeightSpan
from tests.patience import patient
from tests.unit.acting import LocalEnvironments
from tests.unit.align.round.test_round import Ran
from tests.unit.campaigns import Watcher, campaign, rounds
from tests.unit.hf_engine import HFEngine
from tests.unit.rollouts.episodes.test_conversing import begun
from tests.unit.rollouts.episodes.test_conversing import engine as talking_engine

REWARDS = Path(__file__).parents[2] / "sampling_rewards.py"


class Diary(HFEngine):
    """Writes down what was asked in what order."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.said: list[str] = []

    def submit(self, requests: Any) -> Ticket:
        ticket = super().submit(requests)
        if requests[0].n == 1:  # A drift meter or the probe.
            return ticket
        self.said.append(f"ask {self.versions[-1].rpartition('/')[2]}")

        def collect() -> Any:
            self.said.append("collect")
            return ticket()

        return collect

    def sync(self, update: WeightUpdate) -> Any:
        self.said.append(f"sync {update.version.rpartition('/')[2]}")
        return super().sync(update)


class InFlight(Diary):
    """Takes weights while it samples: what is asked for is sampled when it is collected."""

    def submit(self, requests: Any) -> Ticket:
        if requests[0].n == 1:
            return super().submit(requests)
        self.said.append(f"ask {self.versions[-1].rpartition('/')[2]}")

        def collect() -> Any:
            self.said.append("collect")
            return self.generate(requests)

        return collect

    def deposit(self, update: WeightUpdate) -> Any:
        self.said.append(f"deposit {update.version.rpartition('/')[2]}")
        return HFEngine.sync(self, update)


class Early(InFlight):
    """Has answered everything when weights are handed to it."""

    submit = Diary.submit


class Replacing(InFlight):
    """Cannot load the second weights in the middle of its samples: the first request is lost with the
    engine, and the others are answered by the one that took its place."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.replaced: list[str] = []
        self.lost = False

    def deposit(self, update: WeightUpdate) -> Any:
        if update.version.endswith("/2"):
            self.replaced.append("engine 0: WeightLoadError: no room")
            self.lost = True
        return super().deposit(update)

    def generate(self, requests: Any) -> Any:
        results = super().generate(requests)
        if self.lost and requests[0].n > 1:
            self.lost = False
            failed = (Completion.failed("engine 0 failed on it 2 times"),) * requests[0].n
            results[0] = replace(results[0], completions=failed)
        return results


class Starter:
    def __init__(self, kind: type[Diary]) -> None:
        self.kind = kind
        self.engines: list[Any] = []

    def __call__(self, config: CampaignConfig, model: Path, context: int) -> Any:
        self.engines.append(self.kind(model))
        return self.engines[-1]


def run(folder: Path, kind: type[Diary] = Diary, **changes: Any) -> tuple[Ran, list[str]]:
    """One round, and what its engine was asked between the first sync of the round and the probe."""
    spec = {"steps": 4, "meter_every": 99, **changes}
    starter, watcher = Starter(kind), Watcher()
    config = campaign(folder, rounds=rounds(spec))
    evidence = run_campaign(config, start_engine=starter, observer=watcher)
    said = starter.engines[0].said
    start = len(said) - 1 - said[::-1].index("sync 0")
    end = len(said) - 1 - said[::-1].index("sync 4")
    ran = Ran(config=config, evidence=evidence, starter=starter, watcher=watcher)  # type: ignore[arg-type]
    return ran, said[start : end + 1]


def test_on_policy_every_step_waits_for_its_own_samples(tmp_path: Path) -> None:
    ran, said = run(tmp_path)
    assert said == [
        "sync 0", "ask 0", "collect", "sync 1", "ask 1", "collect", "sync 2",
        "ask 2", "collect", "sync 3", "ask 3", "collect", "sync 4",
    ]  # fmt: skip
    assert all(m["parity/max_abs_diff"] > 0 for m in ran.metrics(0, "round0"))
    assert {m["staleness/steps"] for m in ran.metrics(0, "round0")} == {0.0}


def test_one_step_ahead_the_next_samples_are_asked_for_before_the_update(tmp_path: Path) -> None:
    """``ask n`` names the weights: step n + 1 is asked of weights n, and never of older ones."""
    ran, said = run(tmp_path, sampling={"max_staleness": 1})
    assert said == [
        "sync 0", "ask 0", "collect", "ask 0", "sync 1", "collect", "ask 1", "sync 2",
        "collect", "ask 2", "sync 3", "collect", "sync 4",
    ]  # fmt: skip
    assert [m["staleness/steps"] for m in ran.metrics(0, "round0")] == [0.0, 1.0, 1.0, 1.0]
    # Only the first step was sampled by the very weights that learn from it.
    assert [m["parity/max_abs_diff"] > 0 for m in ran.metrics(0, "round0")] == [
        True, False, False, False,
    ]  # fmt: skip


def test_staleness_of_two_syncs_at_every_second_step_and_never_lags_more(tmp_path: Path) -> None:
    ran, said = run(tmp_path, sampling={"max_staleness": 2})
    assert [word for word in said if word.startswith("sync")] == ["sync 0", "sync 2", "sync 4"]
    assert [m["staleness/steps"] for m in ran.metrics(0, "round0")] == [0.0, 1.0, 2.0, 1.0]


def test_in_flight_weights_go_to_engines_with_samples_under_way(tmp_path: Path) -> None:
    """The last sync, with nothing under way, is a real one: it proves what the engines hold."""
    ran, said = run(tmp_path, InFlight, sampling={"max_staleness": 1, "in_flight": True})
    assert said == [
        "sync 0", "ask 0", "collect", "ask 0", "deposit 1", "collect", "ask 1", "deposit 2",
        "collect", "ask 2", "deposit 3", "collect", "sync 4",
    ]  # fmt: skip
    metrics = ran.metrics(0, "round0")
    # This engine samples every token after the deposit.
    assert [m["staleness/tokens_fresher"] for m in metrics] == [0.0, 1.0, 1.0, 1.0]
    assert [m["staleness/steps"] for m in metrics] == [0.0, 1.0, 1.0, 1.0]
    assert [m["parity/max_abs_diff"] > 0 for m in metrics] == [True, False, False, False]


def versions(ran: Ran, step: int) -> set[str]:
    """Weights that the rollout table names for a step, by their learner step."""
    _, path = find_table(ran.config, "round0", step)
    return {record["version"].rpartition("/")[2] for record in load_records(path)}


def test_weights_that_come_too_late_are_those_of_the_next_step(tmp_path: Path) -> None:
    """The step's requests are done: each sample is told to be of the weights that sampled it."""
    ran, said = run(tmp_path, Early, sampling={"max_staleness": 1, "in_flight": True})
    assert [word for word in said if word.startswith("deposit")] == [
        "deposit 1", "deposit 2", "deposit 3",
    ]  # fmt: skip
    metrics = ran.metrics(0, "round0")
    assert {m["staleness/tokens_fresher"] for m in metrics} == {0.0}
    assert [m["staleness/steps"] for m in metrics] == [0.0, 1.0, 1.0, 1.0]
    assert [versions(ran, step) for step in range(4)] == [{"0"}, {"0"}, {"1"}, {"2"}]


def test_an_engine_that_is_lost_with_new_weights_is_told_and_its_samples_are_failures(
    tmp_path: Path,
) -> None:
    sampling = {"max_staleness": 1, "in_flight": True, "repairs": 0}
    ran, _ = run(tmp_path, Replacing, sampling=sampling, failed_budget=1.0)
    metrics = ran.metrics(0, "round0")
    # Deposited after step 1, while the samples of step 2 were under way.
    assert [m["engines/replaced"] for m in metrics] == [0.0, 1.0, 0.0, 0.0]
    assert [m["completions/failed_share"] > 0 for m in metrics] == [False, False, True, False]
    assert [n for n in ran.watcher.notes if "replaced" in n] == [
        "round0: replaced engine 0: WeightLoadError: no room"
    ]
    assert metrics[2]["staleness/tokens_fresher"] == 1.0
    _, path = find_table(ran.config, "round0", 2)
    lost, *rest = [r for r in load_records(path) if r["sample"] == 0 and r["source"] == "new"]
    assert (lost["finish"], lost["tokens"], lost["advantage"]) == ("failed", 0, None)
    assert {record["version"].rpartition("/")[2] for record in rest} == {"2"}


def test_an_engine_that_never_samples_behind_its_caller_is_synced(tmp_path: Path) -> None:
    ran, said = run(tmp_path, sampling={"max_staleness": 1, "in_flight": True})
    assert [word for word in said if word.startswith("sync")] == [f"sync {n}" for n in range(5)]
    assert {m["staleness/tokens_fresher"] for m in ran.metrics(0, "round0")} == {0.0}


def test_the_share_of_fresher_tokens_counts_tokens_not_completions() -> None:
    def said(*spans: WeightSpan) -> Completion:
        length = spans[-1].end if spans else 0
        return Completion(
            token_ids=(1,) * length,
            logprobs_T=(-1.0,) * length,
            text="",
            finish_reason="stop",
            weight_versions=spans,
        )

    group = RolloutGroup(
        prompt=Prompt(id="p", text="p"),
        prompt_ids=(1,),
        completions_G=(
            said(WeightSpan("r/0", 0, 6), WeightSpan("r/1", 6, 8)),
            said(WeightSpan("r/0", 0, 2)),
            Completion.failed("lost"),
        ),
        policy="r/0",
        seed=0,
    )
    assert fresher_share([ScoredGroup(group=group, scores_G=())]) == 0.2
    assert fresher_share([]) == 0.0


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_stale_samples_are_weighted(tmp_path: Path, level: str) -> None:
    """With a learning rate that moves the policy, a later step's weights are not all one."""
    ran, _ = run(
        tmp_path,
        sampling={"max_staleness": 1},
        importance={"level": level},
        optimizer={"lr": 3e-3},
    )
    weights = [m.get("importance/mean_abs_shift", 0.0) for m in ran.metrics(0, "round0")]
    assert weights[0] == 0.0
    assert all(weight > 1e-3 for weight in weights[1:])


def test_groups_without_a_signal_are_asked_again_a_bounded_number_of_times(tmp_path: Path) -> None:
    algorithm = {"name": "dapo", "max_resamples": 2}
    ran, said = run(tmp_path, algorithm=algorithm, rewards=[f"{REWARDS}:constant"])
    assert said[:5] == ["sync 0", "ask 0", "collect", "ask 0", "collect"]
    assert said.count("collect") == 4 * 3
    assert {m["groups/resampled"] for m in ran.metrics(0, "round0")} == {0.0}

    ran, _ = run(tmp_path / "mixed", algorithm=algorithm)
    assert sum(m["groups/resampled"] for m in ran.metrics(0, "round0")) > 0
    for m in ran.metrics(0, "round0"):
        assert m["batch/new_tokens"] > 0


def test_a_group_whose_reward_failed_is_repaired(tmp_path: Path) -> None:
    flaky = {"rewards": [f"{REWARDS}:flaky"], "failed_budget": 1.0}
    ran, said = run(tmp_path, **flaky)
    assert said[:5] == ["sync 0", "ask 0", "collect", "ask 0", "collect"]
    first, *later = ran.metrics(0, "round0")
    assert first["groups/repaired"] == 1.0
    assert all(m["groups/repaired"] == 0.0 for m in later)
    assert first["reward/failed_share"] == 0.0  # What the learner saw.

    ran, said = run(tmp_path / "without", **flaky, sampling={"repairs": 0})
    assert said.count("ask 0") == 1
    assert ran.metrics(0, "round0")[0]["reward/failed_share"] > 0.0


def test_what_a_request_asks_depends_on_the_step_alone(tmp_path: Path) -> None:
    """Sampling ahead asks the same prompts with the same seeds."""
    asked: list[list[SampleRequest]] = []
    for name, staleness in (("now", 0), ("ahead", 1)):
        found: list[SampleRequest] = []

        class Keeping(Diary):
            def submit(self, requests: Any, found: Any = found) -> Ticket:
                found.extend(requests)
                return super().submit(requests)

        run_campaign(
            campaign(
                tmp_path / name,
                rounds=rounds({"steps": 3, "sampling": {"max_staleness": staleness}}),
            ),
            start_engine=lambda config, model, context, kind=Keeping: kind(model),
            observer=Watcher(),
        )
        asked.append(found)
    ids = [{(r.id, r.seed, r.n) for r in found} for found in asked]
    assert ids[0] == ids[1]


def test_episodes_that_are_sampled_ahead_end_with_the_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In their thread they would go on beside what comes next, and open environments anew."""
    released = threading.Event()
    environments = LocalEnvironments({"tell": lambda text: released.wait(patient(60.0))})
    ahead = begun(talking_engine(), environments, "ab")
    unused: Any = None

    def fail(*_: object) -> int:
        raise RuntimeError("the reward was fooled")

    def sampler(**settings: Any) -> StepSampler:
        pending = PendingStep(draw=unused, pending=ahead, engine_step=0)
        return StepSampler(**settings, _pending={1: pending})

    monkeypatch.setattr(round_module, "penalties_of", lambda plan: None)
    monkeypatch.setattr(round_module, "StepSampler", sampler)
    monkeypatch.setattr(round_module, "resume", fail)
    plan: Any = SimpleNamespace(spec=None)
    session: Any = SimpleNamespace(
        begin=lambda *_: None, engine=None, encoder=None, learner=SimpleNamespace(weights=None),
        observer=SimpleNamespace(note=None),
        config=SimpleNamespace(waits=SimpleNamespace(silence_s=60.0)),
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="fooled"):
        round_module.train(plan, session)
    released.set()
    assert set(environments.dropped) == {"3/0/a/0", "3/1/b/0"}
    with pytest.raises(RunError, match="given up"):
        ahead.groups()


def test_an_engine_that_samples_when_it_is_asked_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def sample(*_: object, **__: object) -> str:
        clock[0] += 5.0
        return "pending"

    monkeypatch.setattr(sampler_module, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(sampler_module, "begin", sample)
    draw = SimpleNamespace(prompts=(), group_sizes=())
    plan: Any = SimpleNamespace(
        mixture=SimpleNamespace(draw=lambda step: draw), spec=SimpleNamespace(steps=2), seed=0,
        sampling=None, version=str, environments=None,
    )  # fmt: skip
    unused: Any = None
    settings: Any = {"engine": unused, "encoder": unused, "weights": unused, "note": unused}
    sampler = StepSampler(plan=plan, **settings)
    sampler._ask(0)
    assert sampler._metrics["time/sampling_s"] == 5.0

"""Whole rounds in this process: real model, real learner, real store; only vLLM and Ray are away."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.data.replay.buffer import ReplayBuffer
from align.errors import EvidenceError, ParityError
from align.gate.evidence import Evidence, stored_evidence
from align.report.records.wall_time import attempt_seconds, wall_time
from align.round import round as round_module
from align.store.paths import StorePaths
from align.store.snapshots.snapshots import SnapshotStore
from rewards.failures import RewardFailure
from rollouts.engines.protocol import SampleRequest, SampleResult
from rollouts.errors import LostRankError, RunError, UserError
from rollouts.types import Completion
from tests.unit.campaigns import (
    ENFORCE,
    Starter,
    Watcher,
    campaign,
    no_engine,
    raw_campaign,
    rounds,
)
from tests.unit.hf_engine import HFEngine


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A campaign that ran to its end."""

    config: CampaignConfig
    evidence: Evidence
    starter: Starter
    watcher: Watcher

    @property
    def candidates(self) -> dict[str, str | None]:
        return {r.name: r.candidate for r in self.evidence.ledger.rounds()}

    def metrics(self, index: int, name: str, attempt: int = 1) -> list[dict[str, float]]:
        path = self.config.folder / f"rounds/{index:02d}-{name}/attempt-{attempt}/metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


def run(config: CampaignConfig, watcher: Watcher | None = None, **lies: Any) -> Ran:
    starter, watcher = Starter(**lies), watcher or Watcher()
    evidence = run_campaign(config, start_engine=starter, observer=watcher)
    return Ran(config=config, evidence=evidence, starter=starter, watcher=watcher)


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The campaign of `campaigns.campaign`, undisturbed. Tests only read it."""
    return run(campaign(tmp_path_factory.mktemp("two_rounds")))


def with_a_third(config: CampaignConfig, folder: Path) -> CampaignConfig:
    """The same campaign in another folder, with a round appended to it."""
    specs = [spec.model_dump(mode="json") for spec in config.rounds]
    third = {**specs[0], "name": "third", "prompts": "demo://sort?n=60", "steps": 1}
    return campaign(folder, rounds=[*specs, third])


@pytest.fixture(scope="module")
def three_rounds(two_rounds: Ran, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Two rounds and, in a second run, an appended third."""
    folder = tmp_path_factory.mktemp("three_rounds")
    shutil.copytree(two_rounds.config.folder, folder / "store")
    return run(with_a_third(two_rounds.config, folder))


@pytest.fixture
def copied(two_rounds: Ran, tmp_path: Path) -> CampaignConfig:
    """The same campaign with a store that a test may go on with."""
    shutil.copytree(two_rounds.config.folder, tmp_path / "store")
    return campaign(tmp_path)


# what a campaign leaves behind


def test_rounds_are_accepted_in_order_and_production_follows(two_rounds: Ran) -> None:
    ledger, base = two_rounds.evidence.ledger, two_rounds.evidence.base
    first, second = ledger.rounds()
    assert [(r.name, r.state, r.attempt) for r in (first, second)] == [
        ("first", "accepted", 1), ("second", "accepted", 1),
    ]  # fmt: skip
    assert first.parent == base
    assert second.parent == first.candidate
    moves = [(m.previous, m.target, m.round) for m in ledger.alias_moves()]
    assert moves == [
        (None, base, None), (base, first.candidate, 0), (first.candidate, second.candidate, 1),
    ]  # fmt: skip
    assert ledger.alias("production") == second.candidate
    assert len({base, first.candidate, second.candidate}) == 3


def test_the_observer_saw_every_step_and_verdict(two_rounds: Ran) -> None:
    steps = [("first", 0), ("first", 1), ("second", 0), ("second", 1)]
    assert two_rounds.watcher.steps == steps
    verdicts = two_rounds.watcher.verdicts
    assert {n: o.candidate for n, o in verdicts.items()} == two_rounds.candidates
    assert all(o.verdict.accepted for o in verdicts.values())


def test_engines_held_every_version_of_the_weights_in_turn(two_rounds: Ran) -> None:
    (engine,) = two_rounds.starter.engines
    assert engine.closed
    steps = [f"{r}.1/{s}" for r in ("00-first", "01-second") for s in range(3)]
    # Before the base becomes production, then to measure it.
    assert engine.versions == ["base", "base", "base", *steps]


def test_snapshots_say_where_they_come_from(two_rounds: Ran) -> None:
    store = SnapshotStore(two_rounds.config.folder)
    first, second = (two_rounds.candidates[name] or "" for name in ("first", "second"))
    origin = store.open(second).manifest.provenance
    assert (origin.parent, origin.base, origin.round) == (first, two_rounds.evidence.base, "second")
    assert origin.config_hash == two_rounds.config.hash()
    assert origin.data_hashes.keys() == {"prompts", "general"}
    files = {file.name for file in store.open(second).path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files


def test_the_last_snapshot_holds_the_weights_the_engines_ended_with(two_rounds: Ran) -> None:
    import torch
    from safetensors.torch import load_file

    store = SnapshotStore(two_rounds.config.folder)
    saved = load_file(store.open(two_rounds.candidates["second"] or "").path / "model.safetensors")
    (engine,) = two_rounds.starter.engines
    held = engine._model.state_dict()
    assert saved.keys() <= held.keys()
    assert all(torch.equal(saved[name], held[name]) for name in saved)


def test_an_accepted_round_leaves_prompts_to_replay(two_rounds: Ran) -> None:
    candidate = two_rounds.candidates["first"] or ""
    entries = ReplayBuffer.load(StorePaths(two_rounds.config.folder).replay(candidate)).entries
    assert list(entries) == ["first"]
    assert len(entries["first"]) == 12
    assert {(p.source, p.owner, p.round) for p in entries["first"]} == {
        ("past", candidate, "first")
    }


def test_metrics_of_a_first_round(two_rounds: Ran) -> None:
    lines = two_rounds.metrics(0, "first")
    assert [line["step"] for line in lines] == [0, 1]
    wanted = {
        "entropy", "grad_norm", "lr", "steps_skipped", "parity/max_abs_diff", "reward/mean",
        "reward/exact_match", "reward/failed_share", "reward/abstained_share",
        "groups/zero_variance_share", "completions/tokens_mean", "completions/length_cut_share",
        "completions/failed_share", "batch/new_tokens", "batch/general_tokens",
        "kl/general/base", "beta/general/base", "loss/clip_share", "time/update_s", "sync/seconds",
    }  # fmt: skip
    assert all(wanted <= line.keys() for line in lines)
    assert all(math.isfinite(v) for line in lines for v in line.values())
    assert not any("past" in key or "K_old" in key for line in lines for key in line)


def test_metrics_of_a_later_round(two_rounds: Ran) -> None:
    lines = two_rounds.metrics(1, "second")
    for line in lines:
        assert {"kl/past/owner", "kl/general/base", "batch/past_tokens"} <= line.keys()
        assert {"drift/K_new", "drift/K_gen", "drift/K_old/first"} <= line.keys()
        assert line["parity/max_abs_diff"] < 1e-4
        assert line["reward/mean"] == line["reward/exact_match"]
        assert 0.0 <= line["groups/zero_variance_share"] <= 1.0
        assert line["entropy"] > 0
    # The policy starts at the snapshot that owns the past prompts, and has left the base already.
    assert lines[0]["kl/past/owner"] == pytest.approx(0.0, abs=1e-6)
    assert lines[0]["kl/general/base"] > 1e-6
    assert lines[1]["kl/past/owner"] > 1e-6
    assert lines[-1]["drift/K_new"] > 1e-4


def test_replay_takes_its_share_of_a_fixed_budget(two_rounds: Ran) -> None:
    """20 completions: 4 general and none or 4 past; the rest are whole groups of 4."""
    for name, index, past in (("first", 0, 0), ("second", 1, 4)):
        for line in two_rounds.metrics(index, name):
            # Answers of the tiny world are five digits and the end.
            assert line.get("batch/past_tokens", 0.0) == past * 6
            assert line["batch/general_tokens"] == 4 * 6
            assert line["batch/new_tokens"] <= 16 * 6


def test_every_snapshot_is_measured_on_every_suite(two_rounds: Ran) -> None:
    evidence = two_rounds.evidence
    matrix = evidence.matrix()
    assert matrix.suites == ("general", "first", "second")
    assert [row.name for row in matrix.rows] == ["base", "first", "second"]
    assert all(score is not None for row in matrix.rows for score in row.scores)
    for record in evidence.ledger.evaluations():
        assert record.n == 30
        assert (two_rounds.config.folder / record.path).is_file()


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_verdict_drawn_again_is_the_recorded_one(two_rounds: Ran, name: str) -> None:
    again, recorded = stored_evidence(two_rounds.config).recompute(name)
    assert again.to_json() == recorded.to_json()
    assert len(recorded.checks) >= 2


def test_a_verdict_follows_from_the_files(copied: CampaignConfig) -> None:
    """Not from the record of it: with other items on disk it comes out different."""
    import pyarrow.parquet as pq

    evidence = stored_evidence(copied)
    candidate = next(r.candidate for r in evidence.ledger.rounds() if r.name == "second") or ""
    record = next(e for e in evidence.ledger.evaluations(candidate) if e.suite == "second")
    path = copied.folder / record.path
    table = pq.ParquetFile(path).read()
    column = table.schema.get_field_index("value")
    flipped = [1.0 - value for value in table["value"].to_pylist()]
    pq.write_table(table.set_column(column, table.schema.field(column), [flipped]), path)
    with pytest.raises(EvidenceError):
        evidence.recompute("second")
    evidence.files.record([path])  # As if it had been measured so.
    again, recorded = evidence.recompute("second")
    assert again != recorded


def test_a_round_without_a_verdict_cannot_be_recomputed(two_rounds: Ran) -> None:
    with pytest.raises(UserError, match="round 'frst' has no verdict"):
        two_rounds.evidence.recompute("frst")


# going on


def test_a_finished_campaign_starts_no_engine(copied: CampaignConfig) -> None:
    watcher = Watcher()
    evidence = run_campaign(copied, start_engine=no_engine, observer=watcher)
    assert watcher.notes == ["no round is due; nothing to run"]
    assert evidence.ledger.attempts()[-1].attempt == 1


def test_an_appended_round_goes_on_from_production(two_rounds: Ran, three_rounds: Ran) -> None:
    third = three_rounds.evidence.ledger.rounds()[2]
    assert (third.name, third.state) == ("third", "accepted")
    assert third.parent == two_rounds.candidates["second"]
    assert three_rounds.watcher.steps == [("third", 0)]
    (line,) = three_rounds.metrics(2, "third")
    assert {"drift/K_old/first", "drift/K_old/second"} <= line.keys()


def test_an_appended_rounds_suite_is_measured_on_what_was_accepted_before(
    two_rounds: Ran, three_rounds: Ran
) -> None:
    """And nothing is measured twice: the other suites keep their numbers."""
    matrix, before = three_rounds.evidence.matrix(), two_rounds.evidence.matrix()
    assert matrix.suites == ("general", "first", "second", "third")
    assert all(score is not None for row in matrix.rows for score in row.scores)
    assert [row.scores[:3] for row in matrix.rows[:3]] == [row.scores for row in before.rows]
    assert [n for n in three_rounds.watcher.notes if n.startswith("measuring")] == [
        "measuring base on third", "measuring first on third", "measuring second on third",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("stop_at", "error"),
    [
        pytest.param(("first", 0), RuntimeError, marks=pytest.mark.slow),
        (("second", 0), RuntimeError),
        (("second", 1), KeyboardInterrupt),
    ],
)  # fmt: skip
def test_a_campaign_that_was_stopped_ends_where_an_undisturbed_one_does(
    two_rounds: Ran, tmp_path: Path, stop_at: tuple[str, int], error: type[BaseException]
) -> None:
    config = campaign(tmp_path)
    starter = Starter()
    with pytest.raises(error, match="stopped by the test"):
        run_campaign(config, start_engine=starter, observer=Watcher(stop_at, error))
    assert starter.engines[0].closed
    evidence = stored_evidence(config)
    stopped = next(r for r in evidence.ledger.rounds() if r.name == stop_at[0])
    assert (stopped.state, stopped.attempt, stopped.candidate) == ("failed", 1, None)
    assert stopped.report == {"error": "stopped by the test"}

    ran = run(config)
    assert ran.candidates == two_rounds.candidates
    assert ran.evidence.matrix() == two_rounds.evidence.matrix()
    attempts = {r.name: r.attempt for r in ran.evidence.ledger.rounds()}
    assert attempts[stop_at[0]] == 2
    whole = ran.metrics(1, "second", attempts["second"])
    undisturbed = two_rounds.metrics(1, "second")
    for key in ("reward/mean", "kl/past/owner", "drift/K_old/first", "entropy"):
        assert [line[key] for line in whole] == [line[key] for line in undisturbed]


def test_a_rank_that_was_lost_costs_an_attempt_and_changes_nothing(
    two_rounds: Ran, tmp_path: Path
) -> None:
    defaults = {**raw_campaign(tmp_path)["defaults"], "checkpoint_every": 1}
    watcher = Watcher(("second", 0), LostRankError)
    ran = run(campaign(tmp_path, defaults=defaults), watcher)
    attempts = [(r.name, r.attempt, r.state) for r in ran.evidence.ledger.rounds()]
    assert attempts == [("first", 1, "accepted"), ("second", 2, "accepted")]
    notes = [note for note in watcher.notes if "start anew" in note or "goes on" in note]
    assert notes == [
        "second: stopped by the test; the ranks start anew (3 restarts left)",
        "round second goes on from step 1",
    ]
    for name in ran.candidates:
        ours, theirs = (
            SnapshotStore(r.config.folder).open(r.candidates[name] or "").path
            for r in (ran, two_rounds)
        )
        assert (ours / "model.safetensors").read_bytes() == (
            theirs / "model.safetensors"
        ).read_bytes()
    never = {"model": "demo://digits", "max_restarts": 0}
    with pytest.raises(LostRankError):
        run(campaign(tmp_path / "never", policy=never), Watcher(("first", 0), LostRankError))


@pytest.mark.parametrize("place", ["publish", "enter_gating", "save", "remember", "commit_round"])
def test_a_runner_that_died_at_any_point_after_training_is_made_up_for(
    copied: CampaignConfig, three_rounds: Ran, tmp_path: Path, place: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Killed, it writes nothing down either: the round stays running or gating in the ledger."""
    from align.store.ledger.ledger import Ledger

    config = with_a_third(copied, tmp_path)
    owners = {"publish": SnapshotStore, "save": Evidence, "remember": round_module}
    owner = owners.get(place, Ledger)

    def die(*_: Any, **__: Any) -> None:
        raise MemoryError("killed")

    save = Evidence.save

    def die_in_the_round(self: Evidence, *arguments: Any) -> None:
        if self.ledger.rounds()[2].state == "gating":
            die()
        save(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "commit_round", die)
        patch.setattr(owner, place, die_in_the_round if place == "save" else die)
        with pytest.raises(MemoryError):
            run(config)
    assert stored_evidence(config).ledger.rounds()[2].state in ("running", "gating")
    assert stored_evidence(config).ledger.alias("production") == three_rounds.candidates["second"]

    ran = run(config)
    third = ran.evidence.ledger.rounds()[2]
    assert (third.state, third.attempt) == ("accepted", 2)
    assert ran.evidence.ledger.alias("production") == third.candidate
    assert ran.candidates == three_rounds.candidates


# the gate


def test_a_rejected_round_leaves_production_alone(tmp_path: Path) -> None:
    """A learning rate of 0.5 destroys the model; the round after it starts from the same parent."""
    harmful = {"name": "harmful", "optimizer": {"lr": 0.5}}
    config = campaign(
        tmp_path,
        rounds=rounds(harmful, {"name": "next", "prompts": "demo://inc?n=60"}),
        gate=ENFORCE,
    )
    ran = run(config)
    first, second = ran.evidence.ledger.rounds()
    assert first.state == "rejected"
    verdict = ran.watcher.verdicts["harmful"].verdict
    assert not verdict.accepted
    assert any("general" in reason and "lost" in reason for reason in verdict.reasons)
    assert second.parent == first.parent == ran.evidence.base
    assert ran.evidence.ledger.alias("production") == ran.evidence.base
    assert len(ran.evidence.ledger.alias_moves()) == 1
    assert [row.accepted for row in ran.evidence.matrix().rows] == [True, False, False]
    # A rejected round owns nothing: its prompts are not replayed, and it holds nobody.
    (line,) = ran.metrics(1, "next")
    assert "kl/past/owner" not in line


# rewards


LENGTH = {"name": "length", "part": "size", "options": {"target": 6}}


@pytest.mark.parametrize(("mode", "parts"), [("add", {"right", "size"}), ("override", {"size"})])
def test_rewards_of_an_earlier_round_with_the_same_prompts(
    tmp_path: Path, mode: str, parts: set[str]
) -> None:
    config = campaign(
        tmp_path,
        rounds=rounds(
            {"rewards": [{"name": "exact_match", "part": "right"}]},
            {"rewards": [LENGTH], "mode": mode},
        ),
    )
    ran = run(config)
    (line,) = ran.metrics(1, "round1")
    own = {"mean", "failed_share", "abstained_share"}
    found = {key.removeprefix("reward/") for key in line if key.startswith("reward/")}
    assert found - own == parts
    assert line["reward/mean"] == pytest.approx(sum(line[f"reward/{part}"] for part in parts))
    # The prompts are new ones again, so nobody holds them to what they were.
    assert "kl/past/owner" not in line
    retired = ran.evidence.matrix().retired
    assert retired == ({"round0"} if mode == "override" else frozenset())


def test_a_reward_that_always_fails_is_found_out_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("flaky.py").write_text("def flaky(completions): return 1 / 0")
    config = campaign(tmp_path, rounds=rounds({}, {"rewards": ["flaky.py:flaky"]}))
    with pytest.raises(RunError, match="none of the 30 items of suite 'round1'") as caught:
        run(config)
    assert "flaky" in str(caught.value)
    assert "division by zero" in str(caught.value)
    assert [r.state for r in stored_evidence(config).ledger.rounds()] == ["planned", "planned"]


def stop_reward(completions: Sequence[str]) -> list[float]:
    """Good on the suite before training, broken from then on."""
    STOP_CALLS.append(len(completions))
    if len(STOP_CALLS) > 1:
        raise ZeroDivisionError("nothing to divide by")
    return [0.0] * len(completions)


STOP_CALLS: list[int] = []
STOP = {"name": f"{__name__}:stop_reward", "part": "stop", "isolation": "inline"}
"""Inline, so that a test can start the count again."""


def test_a_reward_that_breaks_in_training_is_named_with_its_reason(tmp_path: Path) -> None:
    STOP_CALLS.clear()
    config = campaign(tmp_path, rounds=rounds({"rewards": [STOP]}))
    with pytest.raises(RewardFailure, match="reward 'stop' failed on 16 of 16") as caught:
        run(config)
    assert "nothing to divide by" in str(caught.value)
    (record,) = stored_evidence(config).ledger.rounds()
    assert (record.state, record.candidate) == ("failed", None)
    assert "reward 'stop' failed" in (record.report or {})["error"]
    assert stored_evidence(config).ledger.alias("production") == stored_evidence(config).base


def test_a_suite_that_stops_early_ends_the_round_once_nothing_of_it_has_a_value(
    tmp_path: Path,
) -> None:
    """The start has a value on the first look; of the candidate every part goes without, up to the last."""
    STOP_CALLS.clear()
    spec = {"name": "general", "prompts": "demo://general", "metric": STOP, "range": [0, 1],
            "items": 96, "margin": 0.2, "budget": 0.3}  # fmt: skip
    gate = {"stopping": "sequential", "underpowered": "warn"}
    config = campaign(tmp_path, suites=[spec], gate=gate, rounds=rounds({}))
    with pytest.raises(RunError, match="none of the 96 items of suite 'general' has a value"):
        run(config)


def test_failures_within_the_budget_cost_samples_and_nothing_else(tmp_path: Path) -> None:
    STOP_CALLS.clear()
    config = campaign(
        tmp_path,
        rounds=rounds(
            {
                "rewards": ["exact_match", STOP],
                "failed_budget": 1.0,
            }
        ),
    )
    # Training goes through; the suite, on which nothing at all has a value, ends the round.
    with pytest.raises(RunError, match="none of the 30 items of suite 'round0' has a value"):
        run(config)
    path = config.folder / "rounds/00-round0/attempt-1/metrics.jsonl"
    line = json.loads(path.read_text())
    assert line["reward/failed_share"] == 1.0
    assert line["groups/zero_variance_share"] == 1.0


# engines that lie


@pytest.mark.parametrize(
    ("lies", "words"),
    [
        ({"sample_lie": 0.01}, "engine and learner disagree by 0.01 nats on a sampled token"),
        ({"deaf_from": 3}, "nats on a sampled token"),
        ({"deaf_from": 4}, "nats on a sampled token"),
        ({"score_lie": -0.5}, "disagree by 0.5 nats after the last sync"),
        ({"sample_lie": float("nan")}, "disagree"),
        ({"score_lie": float("nan")}, "disagree"),
    ],
)
def test_an_engine_that_lies_is_found_out(tmp_path: Path, lies: dict[str, Any], words: str) -> None:
    """Syncs are base, 0, 1, 2; the third holds what the second step samples from, the fourth what the
    drift meter does."""
    config = campaign(tmp_path, rounds=rounds({"steps": 2}))
    with pytest.raises(ParityError) as caught:
        run(config, **lies)
    assert words in str(caught.value)
    (record,) = stored_evidence(config).ledger.rounds()
    assert (record.state, record.candidate) == ("failed", None)
    evidence = stored_evidence(config)
    assert {e.snapshot for e in evidence.ledger.evaluations()} == {evidence.base}


class LosingEngine(HFEngine):
    """Every third request of training comes back without a completion."""

    def generate(self, requests: Sequence[SampleRequest]) -> list[SampleResult]:
        results = super().generate(requests)
        if self.versions[-1] == "base":
            return results
        return [
            SampleResult(id=r.id, completions=(Completion.failed("lost"),) * len(r.completions))
            if i % 3 == 1
            else r
            for i, r in enumerate(results)
        ]


def test_completions_that_are_lost_are_left_out(tmp_path: Path) -> None:
    def start(config: CampaignConfig, model: Path, context: int) -> LosingEngine:
        return LosingEngine(model)

    config = campaign(tmp_path, rounds=rounds({"sampling": {"repairs": 0}}))
    evidence = run_campaign(config, start_engine=start, observer=Watcher())
    (record,) = evidence.ledger.rounds()
    assert record.state == "accepted"
    path = config.folder / "rounds/00-round0/attempt-1/metrics.jsonl"
    line = json.loads(path.read_text())
    assert line["completions/failed_share"] == 0.25
    assert line["reward/failed_share"] <= 0.25
    assert line["batch/new_tokens"] == 3 * 4 * 6


def test_files_that_share_prompts_are_owned_prompt_by_prompt() -> None:
    from align.round.planning import owned_prompts
    from rollouts.types import Prompt

    def asked(*texts: str) -> list[Prompt]:
        return [Prompt(id=f"id {text}", text=text) for text in texts]

    asks = {"a": asked("1", "2", "3", "4"), "b": asked("3", "4", "5"), "c": asked("5", "6")}
    kept = {name: asks[name] for name in ("a", "b", "c")}
    owned = owned_prompts(kept, asks, new=asked("6", "7"))
    assert {name: [p.text for p in prompts] for name, prompts in owned.items()} == {
        "a": ["1", "2"], "b": ["3", "4"], "c": ["5"],
    }  # fmt: skip
    # Whoever is not replayed this time still owns what it asked last.
    only = owned_prompts({"a": asks["a"]}, asks, new=[])
    assert [p.text for p in only["a"]] == ["1", "2"]


def test_the_last_of_rounds_with_the_same_prompts_owns_them() -> None:
    """Its snapshot has all their behaviours; an earlier owner would undo the later rounds."""
    from align.config.campaign import RoundConfig
    from align.round.planning import owners

    def spec(name: str, prompts: str) -> RoundConfig:
        return RoundConfig.model_validate(
            {"name": name, "prompts": prompts, "rewards": ["exact_match"], "steps": 1}
        )

    before = {
        "a": spec("a", "demo://rev"),
        "b": spec("b", "demo://sort"),
        "c": spec("c", "demo://rev"),
    }
    assert owners(before, shared=set()) == ["b", "c"]
    assert owners(before, shared={"a", "c"}) == ["b"]


# wall time


def test_a_round_says_where_its_time_went(two_rounds: Ran) -> None:
    """Every kind of work that a round does is counted, and its parts sum to what the ledger timed."""
    evidence = two_rounds.evidence
    for record in evidence.ledger.rounds():
        time = wall_time(evidence, [record])
        parts = {part.name: part.seconds for part in time.parts}
        assert {
            "start-up", "sampling", "learning", "weight sync", "drift meters", "records",
            "parity probe", "publishing", "measuring", "judging", "other",
        } <= parts.keys()  # fmt: skip
        assert math.fsum(parts.values()) == pytest.approx(time.seconds)
        # The ledger's clock shows milliseconds.
        assert time.seconds >= attempt_seconds(record, None) - 0.002
        measured = {e.suite for e in evidence.ledger.evaluations(record.candidate)}
        assert {part.name for part in time.suites} == measured
    first, _ = evidence.ledger.rounds()
    before = {part.name for part in wall_time(evidence, [first]).before}
    assert {"start-up", "measuring", "weight sync"} <= before


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (SystemExit(143), "was stopped by SIGTERM"),
        (KeyboardInterrupt(), "was stopped by SIGINT"),
        (KeyboardInterrupt("by hand"), "^by hand$"),
        (RuntimeError(), r"RuntimeError\(\)"),
    ],
)
def test_a_failed_attempt_says_why_in_words(error: BaseException, says: str) -> None:
    from align.round.planning import failure_of

    assert re.search(says, failure_of(error))

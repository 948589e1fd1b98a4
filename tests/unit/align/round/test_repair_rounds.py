"""Whole rounds with repairs in this process: what is published, recorded, counted, and gone on with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.data.replay.buffer import ReplayBuffer
from align.gate.evidence import Evidence, stored_evidence
from align.gate.verdict import Verdict
from align.report.explanation.explain import explain
from align.round.plan import RoundPlan
from align.store.paths import StorePaths
from align.store.repairs import repairs_of
from align.store.snapshots.snapshots import SnapshotStore
from tests.unit.campaigns import ENFORCE, Starter, Watcher, campaign, rounds


@dataclass
class ScriptedGate:
    """Says of every candidate in turn whether it lost something; beside a real comparison."""

    passes: list[bool]
    asked: int = 0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        judge, script = Evidence.judge, self

        def told(self: Evidence, *arguments: Any, **named: Any) -> Verdict:
            verdict = judge(self, *arguments, **named)
            script.asked += 1
            return script.said(verdict, script.passes[script.asked - 1])

        patch.setattr(Evidence, "judge", told)

    def said(self, verdict: Verdict, passed: bool) -> Verdict:
        outcomes = {"target": "passed", "retention": "passed" if passed else "regressed"}
        checks = tuple(
            replace(c, outcome=outcomes.get(c.role, c.outcome), difference=0.5)  # type: ignore[arg-type]
            for c in verdict.checks
        )
        outcome: Any = "accepted" if passed else "rejected"
        return replace(verdict, accepted=passed, outcome=outcome, checks=checks)


def one_round(folder: Path, repair: Mapping[str, Any], *more: Mapping[str, Any]) -> CampaignConfig:
    first = {"name": "first", "repair": repair, "steps": 2, "checkpoint_every": 1}
    return campaign(
        folder,
        rounds=rounds(first, *more),
        gate=ENFORCE,
    )


def run(config: CampaignConfig, watcher: Watcher | None = None) -> Evidence:
    return run_campaign(config, start_engine=Starter(), observer=watcher or Watcher())


def weights(config: CampaignConfig, snapshot: str) -> dict[str, torch.Tensor]:
    return load_file(SnapshotStore(config.folder).open(snapshot).path / "model.safetensors")


HALVES = {"interpolate": {"steps": 2}}


@pytest.fixture(scope="module")
def repaired(tmp_path_factory: pytest.TempPathFactory) -> tuple[CampaignConfig, Evidence, Watcher]:
    """The first candidate and half of it are refused, a quarter of it is taken; then another round."""
    config = one_round(tmp_path_factory.mktemp("repaired"), HALVES, {"name": "next"})
    watcher = Watcher()
    with pytest.MonkeyPatch.context() as patch:
        ScriptedGate([False, False, True, False]).install(patch)
        return config, run(config, watcher), watcher


def test_the_repaired_candidate_becomes_production(
    repaired: tuple[CampaignConfig, Evidence, Watcher],
) -> None:
    config, evidence, _ = repaired
    first, second = evidence.ledger.rounds()
    failed, half, quarter = repairs_of(first.report)
    assert (first.state, first.candidate) == ("accepted", quarter.candidate)
    assert second.parent == quarter.candidate
    assert [one.outcome for one in (failed, half, quarter)] == ["rejected", "rejected", "accepted"]
    assert len({failed.candidate, half.candidate, quarter.candidate}) == 3
    parent, far = weights(config, evidence.base), weights(config, failed.candidate)
    for name, tensor in weights(config, quarter.candidate).items():
        assert torch.equal(tensor, torch.lerp(parent[name], far[name], 0.25))


def test_every_candidate_is_measured_and_says_where_it_comes_from(
    repaired: tuple[CampaignConfig, Evidence, Watcher],
) -> None:
    config, evidence, _ = repaired
    failed, half, quarter = repairs_of(evidence.ledger.rounds()[0].report)
    for one in (failed, half, quarter):
        measured = {e.suite for e in evidence.ledger.evaluations(one.candidate)}
        assert measured >= {"general", "first"}
    store = SnapshotStore(config.folder)
    assert store.open(failed.candidate).manifest.provenance.extra == {}
    origin = store.open(quarter.candidate).manifest.provenance
    assert origin.parent == evidence.base
    assert origin.extra["repair"] == {
        "rung": "interpolate", "of": failed.candidate, "share": 0.25,
        "description": "interpolation at 0.25",
    }  # fmt: skip
    entries = ReplayBuffer.load(StorePaths(config.folder).replay(quarter.candidate)).entries
    assert {prompt.owner for prompt in entries["first"]} == {quarter.candidate}
    assert not StorePaths(config.folder).replay(failed.candidate).exists()


def test_every_candidate_was_a_look(repaired: tuple[CampaignConfig, Evidence, Watcher]) -> None:
    _, evidence, _ = repaired
    assert [one.look for one in repairs_of(evidence.ledger.rounds()[0].report)] == [1, 2, 3]
    assert evidence.looks() == 4
    assert (evidence.look_of("first"), evidence.look_of("next")) == (3, 4)


def test_people_are_told(repaired: tuple[CampaignConfig, Evidence, Watcher]) -> None:
    _, evidence, watcher = repaired
    told = [note for note in watcher.notes if "interpolation" in note]
    assert told[1] == "first: interpolation at 0.25: accepted with 100% of the target gain"
    lines = "\n".join(explain(evidence, "first").lines())
    assert "Candidate of decision 1: the round itself: rejected" in lines
    assert "Candidate of decision 3: interpolation at 0.25: accepted" in lines


def test_what_a_repair_was_trained_with_is_not_left_behind(
    repaired: tuple[CampaignConfig, Evidence, Watcher],
) -> None:
    config, _, _ = repaired
    assert not list((config.folder / "rounds").glob("*/checkpoint*"))


DISTIL = {"distil": {"steps": 3}, "rerun": True}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[CampaignConfig, Evidence]:
    """Distillation and rerun are tried, in vain."""
    config = one_round(tmp_path_factory.mktemp("refused"), DISTIL)
    with pytest.MonkeyPatch.context() as patch:
        ScriptedGate([False, False, False]).install(patch)
        return config, run(config)


def test_after_the_last_rung_the_round_is_rejected(
    refused: tuple[CampaignConfig, Evidence],
) -> None:
    _, evidence = refused
    (record,) = evidence.ledger.rounds()
    tried = repairs_of(record.report)
    assert record.state == "rejected"
    assert record.candidate == tried[0].candidate
    assert [one.rung for one in tried] == ["round", "distil", "rerun"]
    assert evidence.ledger.alias("production") == evidence.base


def test_repairs_write_their_steps_beside_the_rounds_own(
    refused: tuple[CampaignConfig, Evidence],
) -> None:
    config, _ = refused
    folder = config.folder / "rounds/00-first/attempt-1"
    steps = {
        path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in folder.rglob("metrics.jsonl")
    }
    assert {name: len(lines) for name, lines in steps.items()} == {
        "attempt-1": 2, "distil": 3, "rerun": 2,
    }  # fmt: skip
    assert [line["lr"] for line in steps["rerun"]] == [1.5e-4, 1.5e-4]
    # Nothing rewards a distillation; the general pool is what was lost, and gets half of the samples.
    assert "reward/mean" not in steps["distil"][0]
    assert steps["distil"][0]["batch/general_tokens"] == 10 * 6
    assert steps["distil"][0]["loss/policy"] == pytest.approx(0.0, abs=1e-6)


class Killer(Watcher):
    """Stops the runner at a step of one rung, or after a note."""

    def __init__(self, rung: str, step: int) -> None:
        super().__init__()
        self.rung, self.step = rung, step

    def on_step(self, plan: RoundPlan, step: int, metrics: Mapping[str, float]) -> None:
        if plan.origin is not None and (plan.origin.rung, step) == (self.rung, self.step):
            raise KeyboardInterrupt("killed")


@pytest.mark.parametrize(("rung", "step"), [("distil", 1), ("rerun", 0)])
def test_a_run_that_was_killed_on_the_ladder_climbs_it_to_the_same_place(
    refused: tuple[CampaignConfig, Evidence], tmp_path: Path, rung: str, step: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = one_round(tmp_path, DISTIL)
    gate = ScriptedGate([False] * 6)
    gate.install(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(config, Killer(rung, step))
    assert stored_evidence(config).ledger.rounds()[0].state == "failed"

    watcher = Watcher()
    evidence = run(config, watcher)
    (record,), (undisturbed,) = evidence.ledger.rounds(), refused[1].ledger.rounds()
    again, before = (repairs_of(one.report) for one in (record, undisturbed))
    assert [one.candidate for one in again] == [one.candidate for one in before]
    assert [one.look for one in again] == [1, 2, 3]
    # The distillation's own checkpoint, after two of its three steps.
    assert "round first goes on from step 2" in watcher.notes


def test_the_verdict_of_a_repaired_round_follows_from_the_stored_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round that destroys the model, taken for one that gained: interpolation cannot save it."""
    monkeypatch.setattr("align.round.repair.ladder.gained", lambda verdict: True)
    monkeypatch.setattr("align.round.repair.ladder.gain", lambda verdict: 1.0)
    config = campaign(
        tmp_path,
        rounds=rounds({"optimizer": {"lr": 0.5}, "repair": {"interpolate": {"steps": 1}}}),
        gate=ENFORCE,
    )
    evidence = run(config)
    again, recorded = evidence.recompute("round0")
    assert again.to_json() == recorded.to_json()
    assert not recorded.accepted
    assert len(repairs_of(evidence.ledger.rounds()[0].report)) == 2

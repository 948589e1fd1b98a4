"""Rounds of a template, of which later ones look back on few: real model, learner, store and gate."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.gate.evidence import stored_evidence
from align.gate.verdict import Verdict
from align.report.explanation.explain import explain
from align.report.html.data import collect
from align.round.measurement.aa_run import measure_noise
from align.round.plan import RoundPlan
from launch.commands.schedule import claim
from tests.unit.align.schedule.test_inbox_round import FED, drop, pairs
from tests.unit.campaigns import Starter, Watcher, campaign, rounds
from tests.unit.schedules import START

TASKS = ("rev", "inc", "sort", "rotl")
"""Topic of each night's pairs."""
NIGHTS = len(TASKS)
TEMPLATE: dict[str, Any] = {
    **FED,
    "name": "nightly",
    "when": {"new_pairs": 5},
    "steps": 1,
    "replay": {"past": 0.3, "general": 0.0},
    "remember": {"newest": 1, "older": 1},
}


class Nights(Watcher):
    """Also remembers whose prompts each round replayed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.replayed: dict[str, tuple[str, ...]] = {}
        self.held: dict[str, set[str]] = {}

    def on_step(self, plan: RoundPlan, step: int, metrics: Mapping[str, float]) -> None:
        self.replayed[plan.spec.name] = tuple(plan.mixture.past.entries)
        prompts = plan.repair_prompts
        self.held[plan.spec.name] = set(prompts.entries if prompts else ())
        super().on_step(plan, step, metrics)


def config_of(folder: Path) -> CampaignConfig:
    return campaign(folder, rounds=rounds({"name": "plain", "steps": 1}, TEMPLATE))


def night(folder: Path, number: int, watcher: Watcher, now: datetime) -> None:
    """Pairs arrive, the round falls due and runs."""
    drop(folder, pairs(f"demo://{TASKS[number]}?n=60"), f"{number}.jsonl")
    os.utime(folder / "store" / "inbox" / "drop" / f"{number}.jsonl", (0, 0))  # Written long ago.
    (due,) = (one for one in claim(config_of(folder), now).due if one.schedule == "nightly")
    assert due.round == f"nightly-{number + 1}"
    run_campaign(config_of(folder), start_engine=Starter(), observer=watcher)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Nights]:
    """Every night, of which the last is stopped once and goes on."""
    folder, watcher = tmp_path_factory.mktemp("nights"), Nights()
    for number in range(NIGHTS - 1):
        night(folder, number, watcher, START + timedelta(days=number))
    stopped = Nights(stop_at=(f"nightly-{NIGHTS}", 0))
    with pytest.raises(RuntimeError, match="stopped by the test"):
        night(folder, NIGHTS - 1, stopped, START + timedelta(days=NIGHTS))
    run_campaign(config_of(folder), start_engine=Starter(), observer=watcher)
    assert stopped.replayed[f"nightly-{NIGHTS}"] == watcher.replayed[f"nightly-{NIGHTS}"]
    return folder, watcher


def verdicts(folder: Path) -> dict[str, Verdict]:
    records = stored_evidence(config_of(folder)).committed()
    return {record.name: Verdict.from_dict(record.report or {}) for record in records}


def test_every_decision_looks_at_few_and_names_the_rest(ran: tuple[Path, Nights]) -> None:
    found = verdicts(ran[0])
    assert list(found) == ["plain", *(f"nightly-{n + 1}" for n in range(NIGHTS))]
    for number in range(1, NIGHTS + 1):
        verdict = found[f"nightly-{number}"]
        earlier = ["plain", *(f"nightly-{n}" for n in range(1, number))]
        seen = {rule.target_of for rule in verdict.inputs.suites} - {None, f"nightly-{number}"}
        left_out = verdict.inputs.left_out
        assert [*left_out] == [name for name in earlier if name not in seen]
        assert len(left_out) == max(0, number - 3)
        # The plain round and the newest night are always among them.
        assert {"plain", earlier[-1]} <= seen
        assert {check.suite for check in verdict.checks if check.role == "retention"} == {
            "general", *seen,
        }  # fmt: skip
        noted = [reason for reason in verdict.reasons if "not looked at this time" in reason]
        assert len(noted) == (1 if left_out else 0)
        assert all(name in noted[0] for name in left_out)


def test_what_is_left_out_is_not_measured(ran: tuple[Path, Nights]) -> None:
    evidence, name = stored_evidence(config_of(ran[0])), f"nightly-{NIGHTS}"
    verdict = verdicts(ran[0])[name]
    (candidate,) = set(verdict.inputs.candidate.values())
    measured = {e.suite for e in evidence.ledger.evaluations(candidate)}
    assert measured == {rule.name for rule in verdict.inputs.suites}
    assert not measured & set(verdict.inputs.left_out)


def test_replay_is_as_bounded_and_drawn_by_itself(ran: tuple[Path, Nights]) -> None:
    folder, watcher = ran
    evidence = stored_evidence(config_of(folder))
    for number in range(4, NIGHTS + 1):
        name = f"nightly-{number}"
        earlier = ["plain", *(f"nightly-{n}" for n in range(1, number))]
        assert len(watcher.replayed[name]) == 3
        assert watcher.replayed[name] == evidence.look_back(name, "replay", earlier).kept
        # What the gate may find lost can be asked for by a repair.
        looked_at = evidence.look_back(name, "gate", earlier).kept
        assert watcher.held[name] == {*watcher.replayed[name], *looked_at}


def test_the_verdict_is_drawn_again_the_same(ran: tuple[Path, Nights]) -> None:
    evidence = stored_evidence(config_of(ran[0]))
    again, recorded = evidence.recompute(f"nightly-{NIGHTS}")
    assert again == recorded
    assert recorded.inputs.gate.spending == "window"


def test_it_is_said_wherever_somebody_looks(ran: tuple[Path, Nights]) -> None:
    folder, watcher = ran
    last, evidence = f"nightly-{NIGHTS}", stored_evidence(config_of(folder))
    left_out = verdicts(folder)[last].inputs.left_out
    assert left_out
    (note,) = {note for note in watcher.notes if note.startswith(f"{last}: looks back on")}
    assert note.endswith(f"looks back on 3 of 4 earlier rounds, not on {', '.join(left_out)}")
    told = explain(evidence, last)
    assert (told.spending, told.left_out) == ("window", left_out)
    said = list(told.lines())
    assert f"Not looked at this time: 1 of the earlier rounds, {', '.join(left_out)}." in said
    assert "at alpha 0.005: any 10 in a row share 0.05." in said[1]
    page = collect(evidence, START)
    assert any("not looked at this time" in reason for reason in page.rounds[-1].reasons)
    assert ("spending", "window") in page.gate


def test_noise_is_measured_in_a_campaign_of_nights(ran: tuple[Path, Nights]) -> None:
    config = config_of(ran[0])
    floors = measure_noise(config, ["general"], start_engine=Starter(), observer=Watcher())
    assert [floor.suite for floor in floors] == ["general"]

"""Defaults of items, margin and budget that fit each other, and the stores that began with others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.config.campaign import CampaignConfig
from align.config.gate import GateConfig
from align.gate.evidence import stored_evidence
from align.gate.power.power import plan_gate
from align.gate.power.underpowered import check_power
from align.gate.statistics.significance import tango_noninferiority
from align.gate.suites.stated import stated_suites
from align.judge.suites_file import SuitesFile
from align.store.changes.earlier_versions import MARGIN, TOTAL_BUDGET, with_earlier_defaults
from align.store.changes.settle import settle
from tests.unit import decided as decided_store
from tests.unit.campaigns import raw_campaign, rounds
from tests.unit.decided import VALUES, N, decided, keel, raw, right
from tests.unit.ledgers import FIRST

SUITE = {"prompts": "demo://general", "metric": "exact_match"}
SUITES = 6
ROUNDS = GateConfig().campaign_rounds


def silent(folder: Path, **gate: Any) -> CampaignConfig:
    """Six suites and ten rounds without a word about items, margins and budgets."""
    suites = [{**SUITE, "name": f"s{index}"} for index in range(SUITES)]
    campaign = raw_campaign(folder, suites=suites, rounds=rounds(*[{}] * ROUNDS), gate=gate)
    del campaign["defaults"]["suite"]
    return CampaignConfig.model_validate(campaign)


def test_an_equal_candidate_passes_by_the_defaults(tmp_path: Path) -> None:
    config = silent(tmp_path)
    plan = plan_gate(config, None)
    assert (plan.looks, len(plan.suites)) == (ROUNDS, SUITES + ROUNDS)
    assert plan.all_pass >= 0.85
    assert all(suite.enough <= suite.n for suite in plan.suites)
    assert check_power(plan, config.gate) == []


def test_an_equal_candidate_passes_where_suites_stop_early(tmp_path: Path) -> None:
    config = silent(tmp_path, stopping="sequential")
    change, alpha = config.gate.assumed_change, config.gate.alpha / ROUNDS
    chances, halves = 1.0, []
    for suite in stated_suites(config, {}):
        chances *= suite.joint(suite.items, change, alpha, pass_fail=True) ** suite.guards
        halves.append(suite.expected(suite.items, change, alpha) <= suite.items / 2)
    assert chances >= 0.85 and all(halves)


def test_equal_candidates_are_accepted_by_simulation(tmp_path: Path) -> None:
    """A fifth of the items is answered anew in every round, half of them right: a tenth changes."""
    config = silent(tmp_path)
    suite, alpha = config.suites[0], config.gate.alpha / config.gate.campaign_rounds
    margin, budget = suite.margin, config.gate.budget_of(suite)
    random, accepted, decisions = np.random.default_rng(0), 0, 0
    for _ in range(60):
        start = random.random((SUITES, suite.items)) < 0.5
        parent, best = start, start
        for _ in range(ROUNDS):
            renewed = random.random(parent.shape) < 2 * config.gate.assumed_change
            candidate = np.where(renewed, random.random(parent.shape) < 0.5, parent)
            passed = all(
                tango_noninferiority(
                    int((other & ~own).sum()), int((own & ~other).sum()), suite.items, limit
                ).p <= alpha
                for before, limit in ((parent, margin), (best, budget), (start, budget))
                for own, other in zip(candidate, before, strict=True)
            )  # fmt: skip
            accepted, decisions = accepted + passed, decisions + 1
            if passed:
                better = candidate.mean(axis=1) > best.mean(axis=1)
                parent, best = candidate, np.where(better[:, None], candidate, best)
    assert accepted / decisions >= 0.85


@pytest.mark.parametrize(
    ("suite", "gate", "margin", "budget"),
    [
        ({}, {}, 0.05, 0.1),
        ({"margin": 0.02}, {}, 0.02, 0.04),
        ({"margin": 0.2}, {}, 0.2, 0.4),
        ({"budget": 0.03}, {}, 0.015, 0.03),
        ({"budget": 0.3}, {}, 0.05, 0.3),
        ({}, {"total_budget": 0.03}, 0.015, 0.03),
        ({"margin": 0.02}, {"total_budget": 0.03}, 0.02, 0.03),
        ({"budget": 0.2}, {"total_budget": 0.03}, 0.05, 0.2),
    ],
)
def test_a_margin_and_a_budget_follow_from_each_other(
    suite: dict[str, Any], gate: dict[str, Any], margin: float, budget: float, tmp_path: Path
) -> None:
    spec = {**SUITE, "name": "general", **suite}
    config = CampaignConfig.model_validate(raw_campaign(tmp_path, suites=[spec], gate=gate))
    file = SuitesFile.model_validate({"suites": [spec], "gate": gate})
    for stated, decides in ((config.suites[0], config.gate), (file.suites[0], file.gate)):
        assert (stated.margin, decides.budget_of(stated)) == (margin, budget)
    again = CampaignConfig.model_validate(config.content() | {"store": str(tmp_path)})
    assert again.content() == config.content()


def begun_before(folder: Path, monkeypatch: pytest.MonkeyPatch, **stated: Any) -> dict[str, Any]:
    """A file that states no margin but ``stated``; its store, with one round, is an earlier version's."""
    suite = {**SUITE, "name": "general", "items": N, **stated}
    gate = {"alpha": 0.05, "campaign_rounds": 2}
    then = [{"margin": MARGIN, **suite}]
    monkeypatch.setitem(decided_store.CHANGES, "suites", then)
    monkeypatch.setitem(decided_store.CHANGES, "gate", {**gate, "total_budget": TOTAL_BUDGET})
    decided(folder, {**VALUES, FIRST.id: {**VALUES[FIRST.id], "general": right(N)}}, rounds=1)
    return raw(folder) | {"suites": [suite], "gate": gate}


def test_a_store_keeps_the_defaults_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CampaignConfig.model_validate(begun_before(tmp_path, monkeypatch))
    settled = settle(config)
    assert (settled.comparison.refusals, settled.comparison.changes) == ((), ())
    (general,) = settled.config.suites
    assert (general.margin, settled.config.gate.budget_of(general)) == (MARGIN, TOTAL_BUDGET)
    again, recorded = stored_evidence(config).recompute("first")
    assert again.to_json() == recorded.to_json() and again.accepted
    margins = {check.margin for check in again.checks if check.suite == "general"}
    assert margins <= {MARGIN, TOTAL_BUDGET}


def test_a_new_suite_of_such_a_store_fits_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = begun_before(tmp_path, monkeypatch)
    campaign["suites"].append({**SUITE, "name": "new"})
    settled = settle(CampaignConfig.model_validate(campaign))
    assert settled.comparison.refusals == ()
    assert [suite.margin for suite in settled.config.suites] == [MARGIN, MARGIN]


def test_what_the_file_states_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = begun_before(tmp_path, monkeypatch)
    campaign["suites"][0]["margin"] = 0.05
    campaign["gate"]["total_budget"] = 0.1
    settled = settle(CampaignConfig.model_validate(campaign))
    assert settled.comparison.refusals == ()
    assert sorted(settled.comparison.sentences) == [
        "gate.total_budget: 0.03 -> 0.1", "suites.general.margin: 0.02 -> 0.05",
    ]  # fmt: skip


def test_a_store_that_began_with_other_values_takes_the_new_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A margin that the file once stated, and states no more, is no default."""
    campaign = begun_before(tmp_path, monkeypatch, margin=0.04, budget=0.06)
    del campaign["suites"][0]["margin"]
    (general,) = settle(CampaignConfig.model_validate(campaign)).config.suites
    assert general.margin == 0.03


def of_budget(folder: Path, budget: float) -> CampaignConfig:
    suite = {**SUITE, "name": "general", "budget": budget}
    return CampaignConfig.model_validate(raw_campaign(folder, suites=[suite]))


@pytest.mark.parametrize(
    ("budget", "changed", "now", "before"),
    [
        (0.04, 0.04, 0.02, 0.02),
        (
            0.04,
            0.03,
            0.015,
            0.02,
        ),  # Of an earlier version it is a default, of this one half of 4 points.
        (0.04, 0.3, 0.05, 0.02),
        (0.04, 0.01, 0.005, 0.01),  # No margin is wider than its budget.
    ],
)
def test_a_margin_that_was_fitted_is_no_earlier_default(
    budget: float, changed: float, now: float, before: float, tmp_path: Path
) -> None:
    content = of_budget(tmp_path, budget).content()
    (suite,) = with_earlier_defaults(of_budget(tmp_path, changed), content).suites
    assert suite.margin == now
    del content["gate"]["stopping"]
    (suite,) = with_earlier_defaults(of_budget(tmp_path, changed), content).suites
    assert suite.margin == before


def test_a_store_of_an_earlier_version_stays_one_once_this_version_has_written_it(
    tmp_path: Path,
) -> None:
    content = of_budget(tmp_path, 0.05).content()
    content["suites"][0]["margin"] = MARGIN
    (suite,) = with_earlier_defaults(of_budget(tmp_path, 0.05), content).suites
    assert suite.margin == MARGIN


def test_recompute_and_plan_say_the_same_with_a_silent_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "silent.yaml"
    path.write_text(json.dumps(begun_before(tmp_path, monkeypatch)))
    code, out, error = keel("gate", "recompute", str(path), "first")
    assert code == 0, error
    assert "accepted" in out
    code, out, error = keel("gate", "plan", str(path), "--json")
    assert code == 0, error
    planned = {suite["suite"]: suite["margin"] for suite in json.loads(out)["suites"]}
    assert planned["general"] == MARGIN

"""What the gate says it can tell beforehand, from a campaign file and from what a store has measured."""

from __future__ import annotations

import json
import math
import os
from datetime import datetime
from pathlib import Path

import pytest

from align.config.campaign import CampaignConfig
from align.gate.evidence import Evidence
from align.gate.power.power import (
    ASSUMED_DISCORDANCE,
    GatePlan,
    SuitePlan,
    measuring_seconds,
    plan_gate,
)
from align.gate.statistics.significance import items_needed, power, smallest_margin
from rollouts.errors import UserError
from tests.unit.campaigns import campaign, rounds
from tests.unit.decided import FIRST, VALUES, N, campaign_file, decided, keel, right

ALPHA = 0.025
"""0.05 over two rounds."""


def suite(plan: GatePlan, name: str) -> SuitePlan:
    (found,) = [one for one in plan.suites if one.suite == name]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decided")


@pytest.fixture(scope="module")
def evidence(folder: Path) -> Evidence:
    """Two decided rounds."""
    return decided(folder)


def test_before_the_first_run_the_change_is_assumed(tmp_path: Path) -> None:
    config = campaign(tmp_path, gate={"campaign_rounds": 4})
    plan = plan_gate(config, None)
    general = suite(plan, "general")
    assert plan.alpha_per_look == 0.0125
    assert [one.suite for one in plan.suites] == ["general", "first", "second"]
    assert (general.n, general.spread.rounds, general.role) == (30, 0, "gate")
    assert general.spread.variance == ASSUMED_DISCORDANCE
    assert general.testable[0.8] == smallest_margin(30, 0.1, 0.0125, 0.8)
    assert general.needed[0.95] == items_needed(0.1, 0.05, 0.0125, 0.95)
    assert general.tokens == 30 * 6
    assert plan.seconds is None


def test_the_assumed_change_can_be_given(tmp_path: Path) -> None:
    plan = plan_gate(campaign(tmp_path), None, discordance=0.3)
    assert {one.spread.variance for one in plan.suites} == {0.3}


def test_a_text_is_scored_in_windows(tmp_path: Path) -> None:
    text = {"name": "text", "text": "some.txt", "window": 64, "items": 120, "margin": 1.5}
    found = suite(plan_gate(campaign(tmp_path, suites=[text]), None), "text")
    assert found.tokens == 120 * 64
    assert not found.spread.pass_fail
    assert found.power == 1.0


def test_too_few_windows_never_pass(tmp_path: Path) -> None:
    """Damage to 1 window in 20 would leave 71 of them as they were with a chance of .95^71 = .026."""
    text = {"name": "text", "text": "some.txt", "items": 71, "margin": 1.5}
    gate = {"campaign_rounds": 2}
    found = suite(plan_gate(campaign(tmp_path, suites=[text], gate=gate), None), "text")
    assert found.power == 0.0
    assert found.needed == {0.8: 72, 0.95: 72}


def test_a_round_that_learns_from_a_file_has_no_known_cost(tmp_path: Path) -> None:
    pairs = {"algorithm": "dpo", "data": "pairs.json", "prompts": None, "rewards": []}
    judge = {"algorithm": "reward_model", "data": "pairs.json", "prompts": None, "rewards": []}
    changes = {"algorithm": {"name": "dpo", "pairs": "file"}}
    config = campaign(tmp_path, rounds=rounds({}, pairs | changes, judge))
    plan = plan_gate(config, None)
    assert [one.suite for one in plan.suites] == ["general", "round0", "round1"]
    assert suite(plan, "round1").tokens is None


def test_the_change_is_measured_against_the_parents(evidence: Evidence) -> None:
    plan = plan_gate(evidence.config, evidence)
    general, first = suite(plan, "general"), suite(plan, "first")
    # 2 of 200 against the base, then 30 of 200 against the first candidate.
    assert general.spread.variance == pytest.approx((2 / N + 30 / N) / 2)
    assert general.spread.rounds == 2
    assert general.spread.pass_fail
    # Its own round turned 100 items; the second round's 10 are what an equal candidate may do.
    assert first.spread.variance == pytest.approx(10 / N)
    assert first.spread.rounds == 1
    assert general.power == pytest.approx(power(N, 0.08, 0.05, 0.05 / 3))


def test_a_third_decision_makes_the_plan_stricter(evidence: Evidence) -> None:
    plan = plan_gate(evidence.config, evidence)
    assert (plan.looks, plan.alpha_per_look) == (3, pytest.approx(0.05 / 3))


def test_only_its_own_round_is_better_than_nothing(tmp_path: Path) -> None:
    found = suite(plan_gate((one := decided(tmp_path, rounds=1)).config, one), "first")
    assert found.spread.variance == pytest.approx(100 / N)


def test_scores_are_planned_by_their_spread(tmp_path: Path) -> None:
    halves = {name: [v / 2 for v in values] for name, values in VALUES[FIRST.id].items()}
    evidence = decided(tmp_path, {**VALUES, FIRST.id: halves}, rounds=1)
    found = suite(plan_gate(evidence.config, evidence), "general")
    # 198 items lose one half, two lose all: the variance of that, n - 1 below.
    mean = -(198 * 0.5 + 2) / N
    variance = (198 * (-0.5 - mean) ** 2 + 2 * (-1 - mean) ** 2) / (N - 1)
    assert not found.spread.pass_fail
    assert found.spread.variance == pytest.approx(variance)
    assert found.testable[0.8] == smallest_margin(
        N, variance, ALPHA, 0.8, pass_fail=False, reach=1.0
    )


def test_a_chain_of_guards_is_weaker_than_each(evidence: Evidence) -> None:
    plan = plan_gate(evidence.config, evidence)
    guards = [suite(plan, name).joint for name in ("general", "first")]
    assert plan.all_pass == pytest.approx(math.prod(guards))
    assert plan.all_pass < min(guards)
    # The general suite is compared with parent and start, the first round's with the parent alone.
    general, first = suite(plan, "general"), suite(plan, "first")
    assert general.joint < general.power and first.joint == first.power


def test_seconds_are_from_the_snapshot_to_its_first_result(evidence: Evidence) -> None:
    assert measuring_seconds(evidence) is None
    manifest = evidence.folder / "snapshots" / FIRST.id / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    recorded = min(e.recorded for e in evidence.ledger.evaluations(FIRST.id))
    moment = datetime.fromisoformat(recorded).timestamp()
    os.utime(manifest, (moment - 12, moment - 12))
    assert measuring_seconds(evidence) == pytest.approx(12)
    os.utime(manifest, (moment + 12, moment + 12))
    assert measuring_seconds(evidence) is None, "a copied store says nothing"


@pytest.mark.parametrize("margin", [1.0, 1.5])
def test_a_margin_of_all_items_is_refused(tmp_path: Path, margin: float) -> None:
    config = campaign(tmp_path)
    raw = config.model_dump(mode="json")
    raw["rounds"][1]["suite"]["margin"] = margin
    with pytest.raises(UserError, match=r"'second' is 1.* shares of items") as caught:
        plan_gate(CampaignConfig.model_validate(raw), None)
    assert caught.value.where == "rounds.1.suite.margin"


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, math.nan])
def test_an_impossible_change_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(UserError, match="of the items changes"):
        plan_gate(campaign(tmp_path), None, discordance=share)


def test_a_suite_that_never_differed(tmp_path: Path) -> None:
    values = {**VALUES, FIRST.id: {**VALUES[FIRST.id], "general": right(N)}}
    evidence = decided(tmp_path, values, rounds=1)
    found = suite(plan_gate(evidence.config, evidence), "general")
    assert found.spread.variance == 0.0
    assert found.testable[0.8] == found.testable[0.95] > 0.01


# the command


def test_the_command_works_before_the_first_run(tmp_path: Path) -> None:
    path = campaign_file(tmp_path)
    code, out, _ = keel("gate", "plan", str(path))
    assert code == 0
    assert "general" in out and "5.0%" in out and "assumed" in out
    assert [file.name for file in tmp_path.iterdir()] == ["campaign.yaml"]


def test_the_command_shows_what_was_measured(folder: Path, evidence: Evidence) -> None:
    path = str(campaign_file(folder))
    code, out, _ = keel("gate", "plan", path)
    assert code == 0
    assert "8.0%" in out
    assert "in 2 decided rounds" in out
    code, out, _ = keel("gate", "plan", path, "--json")
    assert code == 0
    plan = json.loads(out)
    general = plan["suites"][0]
    assert general["spread"] == {"variance": 0.08, "pass_fail": True, "rounds": 2, "noise": None}
    assert general["needed"]["0.8"] == items_needed(0.08, 0.05, 0.05 / 3, 0.8)
    assert general["tokens"] == N * 6


def test_all_checks_of_all_suites_are_planned_together(evidence: Evidence) -> None:
    """With the items for all, the chances of the suites that guard multiply to .8 or a little more."""
    plan = plan_gate(evidence.config, evidence)
    guards = [one for one in plan.suites if one.guards]
    for one in guards:
        assert one.joint <= one.power
        assert one.enough >= one.needed[0.8]
    tokens, known = plan.tokens()
    assert (tokens, known) == (sum(one.tokens or 0 for one in plan.suites), True)
    larger = sum(
        (one.tokens or 0) * (one.enough if one.guards else one.n) // one.n for one in plan.suites
    )
    assert plan.tokens(enough=True) == (larger, True)


def test_costs_are_told_in_dollars_where_tokens_have_a_price(
    folder: Path, evidence: Evidence
) -> None:
    plan = plan_gate(evidence.config, evidence)
    path = str(campaign_file(folder))
    code, out, _ = keel("gate", "plan", path, "--price", "1000")
    assert code == 0
    assert f"at most {plan.tokens()[0]:,} tokens (${plan.tokens()[0] / 1000:,.2f})" in out
    assert "$" not in keel("gate", "plan", path)[1]


@pytest.mark.parametrize(("max_looks", "looks"), [(24, 6), (3, 3), (1, 1)])
def test_where_suites_stop_early_the_plan_says_looks_expected_and_most(
    folder: Path, max_looks: int, looks: int
) -> None:
    """200 items have room for 6 looks of 32."""
    path = str(campaign_file(folder))
    early = ["gate.stopping=sequential", f"gate.max_looks={max_looks}", "gate.underpowered=warn"]
    options = [part for value in early for part in ("--set", value)]
    plan = json.loads(keel("gate", "plan", path, "--json", *options)[1])
    general = plan["suites"][0]
    assert general["looks"] == looks
    assert general["expected"] <= general["n"] == N
    assert max_looks > 1 or general["expected"] == N
    code, out, error = keel("gate", "plan", path, *options)
    assert code == 0, error
    text = " ".join(out.split())
    most = sum(suite["tokens"] for suite in plan["suites"])
    assert f"a candidate costs at most {most:,} tokens" in text
    assert ("expected to cost" in text) == (max_looks > 1)
    assert (f"in up to {looks} looks" in text) == (max_looks > 1)
    assert "what one that accepts was allowed passes on to the next" in text


@pytest.mark.parametrize(
    "extra",
    [
        ["--set", "suites.general.margin=1.5"],
        ["--set", "suites.general.margin=0"],
        ["--set", "suites.general.margin=-0.1"],
        ["--discordance", "2"],
    ],
    ids=" ".join,
)
def test_wrong_margins_exit_2(tmp_path: Path, extra: list[str]) -> None:
    code, out, error = keel("gate", "plan", str(campaign_file(tmp_path)), *extra)
    assert code == 2
    assert out == ""
    assert "\nerror: " in f"\n{error}"  # Behind the line that says what is read.
    assert error.count("error: ") == 1

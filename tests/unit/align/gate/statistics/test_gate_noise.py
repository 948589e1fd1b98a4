"""A/A runs: one snapshot measured twice, and the floor this puts under a plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from align.config.campaign import CampaignConfig
from align.gate.checks import compare
from align.gate.evidence import Evidence, stored_evidence
from align.gate.measurement.evaluate import ItemResults
from align.gate.power.power import ASSUMED_DISCORDANCE, SuitePlan, plan_gate
from align.gate.statistics.noise import (
    NoiseFloor,
    noise_floor,
    noise_lines,
    repeats_of,
    save_repeats,
)
from align.gate.suites.kinds.answers import AnswerSuite
from align.round.measurement.aa_run import measure_noise
from rollouts.errors import UserError
from tests.unit.campaigns import Starter, Watcher, campaign, no_engine
from tests.unit.decided import BASE, FIRST, decided


def results(values: list[float], snapshot: str = BASE.id, **changes: object) -> ItemResults:
    n = len(values)
    base = ItemResults(
        suite="general", suite_hash="h", snapshot=snapshot, item_ids=tuple(map(str, range(n))),
        values=tuple(values), statuses=("scored",) * n, finishes=("stop",) * n,
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def general(config: CampaignConfig, evidence: Evidence | None) -> SuitePlan:
    return next(one for one in plan_gate(config, evidence).suites if one.suite == "general")


def test_the_floor_by_hand() -> None:
    """Of 100 items 6 are lost and 4 won: discordance .1, mean -2 points, and nothing unlikely."""
    first = results([1.0] * 6 + [0.0] * 4 + [1.0] * 90, tokens=300, seconds=1.0)
    second = results([0.0] * 6 + [1.0] * 94, tokens=310, seconds=3.0)
    floor = noise_floor(first, second, AnswerSuite.scale)
    assert (floor.n, floor.lost, floor.won, floor.pass_fail) == (100, 6, 4, True)
    assert (floor.variance, floor.difference) == (pytest.approx(0.1), pytest.approx(-0.02))
    assert floor.largest == pytest.approx(0.164, abs=1e-3), "Clopper and Pearson, 10 of 100"
    assert floor.chance == pytest.approx(0.754, abs=1e-3), "the sign test, 4 or fewer of 10"
    assert (floor.tokens, floor.seconds) == (300, 2.0)
    (line,) = noise_lines([floor])
    assert line.startswith("general: 10.0% of 100 items change (at most 16.4%); mean -2.0 points (")


def test_runs_that_are_not_alike_are_told() -> None:
    floor = noise_floor(results([1.0] * 50), results([0.0] * 12 + [1.0] * 38), AnswerSuite.scale)
    _, line = noise_lines([floor])
    assert line.startswith("  the two runs are not alike, p = ")


def test_scores_have_a_spread() -> None:
    first = results([float(i % 7) for i in range(100)])
    second = results([float((i + i % 3) % 7) for i in range(100)])
    floor = noise_floor(first, second, AnswerSuite.scale)
    assert (floor.pass_fail, floor.largest) == (False, None)
    assert floor.variance == compare(second, first, AnswerSuite.scale, 0.0, 0.05).variance
    assert next(noise_lines([floor])).startswith("general: sd ")


def test_the_latest_production_that_was_measured_counts(tmp_path: Path) -> None:
    evidence = decided(tmp_path, rounds=1)
    assert repeats_of(evidence, "general") is None
    one = results([1.0, 0.0])
    save_repeats(evidence.store.paths, one, one)
    found = repeats_of(evidence, "general")
    assert found is not None and found[0].snapshot == BASE.id
    new = results([1.0, 1.0], FIRST.id)
    save_repeats(evidence.store.paths, new, new)
    found = repeats_of(evidence, "general")
    assert found is not None and found[0].snapshot == FIRST.id


def test_noise_is_a_floor_under_what_is_planned_with(tmp_path: Path) -> None:
    """2 of 200 items changed in the round; between two measurements of one snapshot 40 did."""
    evidence = decided(tmp_path, rounds=1)
    quiet = general(evidence.config, evidence)
    assert (quiet.spread.source, quiet.spread.noise) == ("rounds", None)
    first, second = results([1.0] * 200, FIRST.id), results([0.0] * 20 + [1.0] * 180, FIRST.id)
    save_repeats(evidence.store.paths, second, replace(first, values=(1.0,) * 180 + (0.0,) * 20))
    loud = general(evidence.config, evidence)
    assert (loud.spread.source, loud.spread.variance) == ("A/A", pytest.approx(0.2))
    assert loud.testable[0.8] > quiet.testable[0.8]
    assert loud.needed[0.95] > quiet.needed[0.95]
    old = results([0.0] * 200)
    save_repeats(evidence.store.paths, old, replace(old, values=(1.0,) * 200))
    assert general(evidence.config, evidence).spread == loud.spread, "of a former production"
    save_repeats(evidence.store.paths, first, first)
    still = general(evidence.config, evidence)
    assert (still.spread.source, still.spread.noise) == ("rounds", 0.0)
    assert still.spread.variance == quiet.spread.variance


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[CampaignConfig, list[NoiseFloor]]:
    """The base of a campaign that never ran, measured twice on two of its suites."""
    config = campaign(tmp_path_factory.mktemp("aa"))
    floors = measure_noise(config, ["general", "first"], start_engine=Starter(), observer=Watcher())
    return config, floors


def test_a_campaign_can_be_measured_before_its_first_run(
    measured: tuple[CampaignConfig, list[NoiseFloor]],
) -> None:
    """general is greedy: the same again. first is sampled at temperature 1: other answers."""
    config, (greedy, sampled) = measured
    assert (greedy.suite, greedy.lost, greedy.won) == ("general", 0, 0)
    assert sampled.suite == "first"
    first, second = repeats_of(stored_evidence(config), "first") or pytest.fail("not stored")
    assert first.suite_hash == second.suite_hash
    assert first.tokens is not None and first.tokens > 0
    assert stored_evidence(config).ledger.evaluations() == [], "no verdict can read them"


def test_the_plan_reads_what_was_measured(
    measured: tuple[CampaignConfig, list[NoiseFloor]],
) -> None:
    config, (greedy, _) = measured
    plan = general(config, stored_evidence(config))
    assert (plan.spread.noise, plan.spread.variance) == (greedy.variance, ASSUMED_DISCORDANCE)
    assert (plan.tokens, plan.spread.source) == (greedy.tokens, "assumed")
    assert plan.seconds is not None and plan.seconds > 0.0


def test_a_suite_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no suite 'genral'") as caught:
        measure_noise(campaign(tmp_path), ["genral"], start_engine=Starter(), observer=Watcher())
    assert caught.value.where == "--suite"


def test_a_campaign_with_a_mistake_starts_no_engine(tmp_path: Path) -> None:
    config = campaign(tmp_path, policy={"model": str(tmp_path / "none")})
    with pytest.raises(UserError):
        measure_noise(config, [], start_engine=no_engine, observer=Watcher())

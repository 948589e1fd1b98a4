"""Power of suites that stop early: as bets on drawn items have it, and as the plan counts with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.gate.power.early_power import drifted, early_power
from align.gate.power.power import SuitePlan, plan_gate
from align.gate.statistics.betting import wager
from align.gate.statistics.significance import joint_power
from tests.unit.campaigns import campaign


@pytest.mark.parametrize(
    ("n", "change", "margin"), [(1500, 0.1, 0.04), (800, 0.02, 0.03), (2000, 0.3, 0.05)]
)
def test_power_and_cost_are_those_of_bets_on_drawn_items(
    n: int, change: float, margin: float
) -> None:
    random, times = np.random.default_rng(0), 300
    drawn = random.choice([-1.0, 0.0, 1.0], p=[change / 2, 1 - change, change / 2], size=(times, n))
    states = [wager(row, margin, 0.01, reach=1.0, units=n) for row in drawn]
    found = early_power(n, (change,), (margin,), 0.01)
    passed = np.mean([state.lacking == 0.0 for state in states])
    assert found.joint == pytest.approx(passed, abs=0.06)
    assert found.items == pytest.approx(np.mean([state.units for state in states]), rel=0.1)


def test_more_comparators_pass_less_often_and_cost_more() -> None:
    alone = early_power(1500, (0.1,), (0.04,), 0.01)
    three = early_power(1500, (0.1, 0.2, 0.3), (0.04, 0.06, 0.06), 0.01)
    assert three.joint <= min(three.each) < alone.joint
    assert three.items > alone.items
    assert early_power(3000, (0.1, 0.2, 0.3), (0.04, 0.06, 0.06), 0.01).joint > three.joint


@pytest.mark.parametrize(("rounds", "variance"), [(1, 0.1), (2, 0.18), (3, 0.244)])
def test_answers_drift_from_the_start(rounds: int, variance: float) -> None:
    """Of two values that agree with a chance of 1 - .1 each round: .5 (1 - .8^t)."""
    assert drifted(0.1, rounds, 1.0) == pytest.approx(variance)
    assert drifted(0.1, 1000, 1.0) == pytest.approx(0.5)
    assert drifted(0.6, 5, 1.0) == pytest.approx(0.6)


def test_one_variance_for_all_comparators_is_a_case_of_one_for_each() -> None:
    margins = [0.02, 0.03, 0.03]
    assert joint_power(3000, [0.1] * 3, margins, 0.01) == joint_power(3000, 0.1, margins, 0.01)
    assert joint_power(3000, [0.1, 0.2, 0.3], margins, 0.01) < joint_power(3000, 0.1, margins, 0.01)


def planned(folder: Path, **gate: Any) -> SuitePlan:
    suite = {"name": "general", "prompts": "demo://general", "metric": "exact_match",
             "items": 2000, "margin": 0.05, "budget": 0.1}  # fmt: skip
    return plan_gate(campaign(folder, suites=[suite], gate=gate), None).suites[0]


def test_the_plan_counts_with_the_rule(tmp_path: Path) -> None:
    fixed, early = planned(tmp_path), planned(tmp_path, stopping="sequential")
    assert fixed.expected == fixed.n == early.n == 2000
    assert early.expected < 1000
    assert early.joint == pytest.approx(fixed.joint, abs=0.02)
    assert fixed.enough < early.enough < 1.4 * fixed.enough


def test_the_plan_reckons_with_drift_and_refuses_without(tmp_path: Path) -> None:
    """In the second round the start differs by .18 of the items, by .1 in the first."""
    early = planned(tmp_path)
    margins = [0.05, 0.1]
    assert early.joint == pytest.approx(joint_power(2000, [0.1, 0.18], margins, 0.005))
    assert early.undrifted == pytest.approx(joint_power(2000, 0.1, margins, 0.005))

"""Campaigns whose gate cannot pass are refused before anything is written, or warned of; others are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.config.file import load_campaign
from align.gate.power.power import plan_gate
from align.gate.power.underpowered import check_power
from align.gate.statistics.significance import items_needed, tango_noninferiority
from rollouts.errors import UserError
from tests.unit.campaigns import Starter, Watcher, campaign, raw_campaign
from tests.unit.decided import N, campaign_file, decided, keel

CONFIGS = Path(__file__).parents[5] / "configs"
GENERAL: dict[str, Any] = {
    "name": "general",
    "prompts": "demo://general",
    "metric": "exact_match",
    "items": 400,
    "margin": 0.1,
    "budget": 0.1,
}


def enforced(folder: Path, *suites: dict[str, Any], **gate: Any) -> CampaignConfig:
    """Two rounds, of which the first guards with items to spare, and a gate that decides."""
    raw = raw_campaign(folder, suites=list(suites), gate=gate)
    raw["defaults"]["suite"] = {"items": 300, "margin": 0.3, "temperature": 1.0}
    return CampaignConfig.model_validate(raw)


def refusal(config: CampaignConfig) -> UserError:
    with pytest.raises(UserError) as caught:
        check_power(plan_gate(config, None), config.gate)
    return caught.value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"items": 40}, "40 items, margin 10.0 points, power 0.00"),
        ({"items": 60, "budget": 0.2}, "power 0."),
        ({"margin": 0.02}, "margin 2.0 points, power 0."),
        ({"truncation_margin": 0.01}, "may rise by 1 points at most, power 0.00"),
        ({"failure_margin": 0.01}, "may rise by 1 points at most, power 0.00"),
        ({"range": (0.0, 50.0)}, "may rise by 0.2 points at most, power 0.00"),
        (
            {"items": 20, "samples": 4, "temperature": 1.0, "margin": 0.6, "budget": 0.6},
            "power 0.00",
        ),
        ({"metric": "distinct_ngrams", "items": 20, "margin": 0.9, "budget": 0.9}, "power 0.00"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_suite_that_cannot_tell_is_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    enough = enforced(tmp_path, GENERAL)
    assert check_power(plan_gate(enough, None), enough.gate) == []
    error = refusal(enforced(tmp_path, GENERAL | change))
    assert error.where == "suites.0"
    assert "'general' cannot tell" in error.what and words in error.what
    assert error.remedy is not None and "items" in error.remedy


def test_too_few_windows_are_refused(tmp_path: Path) -> None:
    text = {"name": "text", "text": "some.txt", "items": 7, "margin": 1.5, "budget": 1.5}
    assert "7 items" in refusal(enforced(tmp_path, text)).what


def test_answers_cut_ask_for_items_of_their_own(tmp_path: Path) -> None:
    """Where a metric's range is not known, answers cut are held to 5 points, which no margin changes."""
    unknown = GENERAL | {"metric": "length", "items": 100, "margin": 0.5, "budget": 0.5}
    error = refusal(enforced(tmp_path, unknown))
    assert error.remedy is not None and "larger truncation_margin" in error.remedy
    known = unknown | {"range": (0.0, 1.0)}
    config = enforced(tmp_path, known)
    assert check_power(plan_gate(config, None), config.gate) == []


def test_many_suites_together_are_refused(tmp_path: Path) -> None:
    """Each passes oftener than not, all of them together do not."""
    suites = [GENERAL | {"name": f"s{i}", "items": 130} for i in range(4)]
    plan = plan_gate(config := enforced(tmp_path, *suites), None)
    assert all(suite.undrifted > 0.5 for suite in plan.suites) and plan.all_undrifted < 0.5
    assert "all suites together" in refusal(config).what


def test_a_target_that_shows_no_gain_is_refused(tmp_path: Path) -> None:
    raw = raw_campaign(tmp_path, suites=[], gate={})
    del raw["rounds"][1]
    raw["defaults"]["suite"] = {"items": 6, "margin": 0.5}
    error = refusal(CampaignConfig.model_validate(raw))
    assert "show no gain, however large" in error.what
    raw["defaults"]["suite"] = {"items": 7, "margin": 0.5}
    config = CampaignConfig.model_validate(raw)
    # All seven won: Tango's z is the root of 7, 2.646, above 2.576.
    assert check_power(plan_gate(config, None), config.gate) == []


@pytest.mark.parametrize("gate", [{"mode": "observe"}, {"underpowered": "warn"}])
def test_a_gate_that_only_warns(tmp_path: Path, gate: dict[str, Any]) -> None:
    config = enforced(tmp_path, GENERAL | {"items": 40}, **gate)
    lines = check_power(plan_gate(config, None), config.gate)
    assert lines[0].startswith("warning: suite 'general' cannot tell")


@pytest.mark.parametrize("role", ["watch", "sealed"])
def test_what_decides_nothing_may_be_small(tmp_path: Path, role: str) -> None:
    every = {"every": 5} if role == "sealed" else {}
    config = enforced(tmp_path, GENERAL | {"items": 10, "role": role} | every)
    assert check_power(plan_gate(config, None), config.gate) == []


def test_the_remedy_is_enough(tmp_path: Path) -> None:
    """With the items, or with the margin, that are asked for, all suites pass together with .8."""
    small = GENERAL | {"items": 60}
    first = plan_gate(enforced(tmp_path, small), None).suites[0]
    assert first.smallest is not None
    for change in (
        {"items": first.enough},
        {"margin": first.smallest, "budget": first.smallest},
    ):
        again = plan_gate(enforced(tmp_path, small | change), None)
        assert again.suites[0].joint == pytest.approx(0.8 ** (1 / 2), abs=0.01)
    one_less = plan_gate(enforced(tmp_path, small | {"items": first.enough - 1}), None)
    assert one_less.suites[0].joint < 0.8 ** (1 / 2)


def test_one_comparator_asks_for_what_it_always_did(tmp_path: Path) -> None:
    raw = raw_campaign(tmp_path, suites=[GENERAL], gate={})
    del raw["rounds"][1]
    (general, _) = plan_gate(CampaignConfig.model_validate(raw), None).suites
    assert general.joint == general.power
    assert general.enough == items_needed(0.1, 0.1, 0.005, 0.8)


def test_the_power_is_the_gates(tmp_path: Path) -> None:
    """With 59 items, none of them lost, the gate cannot show 10 points, and with 60 it can."""
    for n, passes in ((59, False), (60, True)):
        assert (tango_noninferiority(0, 0, n, 0.1).p <= 0.005) is passes
        config = enforced(tmp_path, GENERAL | {"items": n}, assumed_change=1e-6)
        assert (plan_gate(config, None).suites[0].joint > 0.5) is passes


# commands


def small_file(folder: Path, **gate: Any) -> Path:
    config = raw_campaign(folder, suites=[GENERAL | {"items": 40}], gate=gate)
    path = folder / "campaign.yaml"
    path.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("words", [("config", "check"), ("plan",), ("run",), ("run", "--dry-run")])
def test_commands_refuse_and_write_nothing(tmp_path: Path, words: tuple[str, ...]) -> None:
    code, _, error = keel(*words, str(small_file(tmp_path)))
    assert code == 2
    assert error.count("error: ") == 1 and "cannot tell" in error
    assert [file.name for file in tmp_path.iterdir()] == ["campaign.yaml"]


@pytest.mark.parametrize("words", [("config", "check"), ("plan",)])
def test_commands_print_what_items_can_test(tmp_path: Path, words: tuple[str, ...]) -> None:
    code, out, error = keel(*words, str(small_file(tmp_path, underpowered="warn")))
    assert code == 0 and "error: " not in error
    shown = " ".join(out.split())
    assert "general: 40 items can test " in shown
    assert "margin 10.0 points, power 0.00" in shown
    assert "warning: suite 'general' cannot tell" in shown


def test_a_campaign_that_began_goes_on(tmp_path: Path) -> None:
    """What was measured before is no reason to stop: the next round runs, with a warning."""
    gate = {"mode": "enforce", "underpowered": "warn"}
    config = campaign(tmp_path, gate=gate)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        run_campaign(config, start_engine=Starter(), observer=Watcher(stop_at=("first", 1)))
    strict = campaign(tmp_path, gate={"mode": "enforce", "underpowered": "refuse"})
    watcher = Watcher()
    run_campaign(strict, start_engine=Starter(), observer=watcher)
    assert any(note.startswith("warning: suite 'general' cannot tell") for note in watcher.notes)
    assert set(watcher.verdicts) == {"first", "second"}


def test_a_store_knows_how_much_changes(tmp_path: Path) -> None:
    """Two decided rounds of 200 items: their measured change is planned with, and nothing is refused."""
    decided(tmp_path)
    code, out, _ = keel("config", "check", str(campaign_file(tmp_path)))
    assert code == 0
    assert f"general: {N} items can test" in out


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_campaign_can_tell(path: Path) -> None:
    config = load_campaign(path).config
    assert check_power(plan_gate(config, None), config.gate) == []


def test_gains_ask_for_items_that_change(tmp_path: Path) -> None:
    """A gain of g changes at least g of the items: (z + z_.8)^2 / n of them, where that is more."""
    raw = raw_campaign(tmp_path, suites=[], gate={"assumed_change": 0.01})
    raw["defaults"]["suite"] = {"items": 100, "margin": 0.5}
    first = plan_gate(CampaignConfig.model_validate(raw), None).suites[0]
    assert first.gain == pytest.approx((2.5758 + 0.8416) ** 2 / 100, abs=1e-3)

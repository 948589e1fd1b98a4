"""A store continues its campaign, takes appended rounds, and refuses anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.errors import StoreError, UserError
from align.memory.ledger import Ledger
from tests.unit.ledgers import BASE, CONFIG, FIRST, REPORT, started, state, url


def changed(**values: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(CONFIG)), **values}


def test_the_same_configuration_continues(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    ledger.begin_round(0, "reverse", BASE.id)
    again = Ledger(url(tmp_path))
    again.open_campaign("digits", CONFIG, "hash-1")
    assert state(again) == [("reverse", "running", 1), ("sort", "planned", 0)]


def test_a_changed_configuration_is_refused_key_by_key(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    config = changed(
        gate={"alpha": 0.05, "mode": "observe"},
        rounds=[{"name": "reverse", "steps": 60}, {"steps": 45, "name": "sort"}],
    )
    with pytest.raises(StoreError) as caught:
        ledger.open_campaign("digits", config, "hash-2")
    lines = str(caught.value).splitlines()
    assert [line.strip() for line in lines[1:3]] == [
        'gate.mode: (absent) -> "observe"',
        "rounds.0.steps: 45 -> 60",
    ]
    assert "set store to another folder, or restore the old value" in lines[-1]
    assert isinstance(caught.value, UserError)
    ledger.open_campaign("digits", CONFIG, "hash-1")


def test_many_changes_are_summed_up(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"(?s)k19: \(absent\) -> 19\n    and 5 more"):
        started(tmp_path).open_campaign(
            "digits", changed(**{f"k{i}": i for i in range(25)}), "hash-2"
        )


def test_another_campaign_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds the campaign 'digits', not 'letters'"):
        started(tmp_path).open_campaign("letters", CONFIG, "hash-1")


def test_appended_rounds_are_planned_and_kept(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    attempt = ledger.begin_round(0, "reverse", BASE.id)
    ledger.enter_gating(0, attempt, FIRST.id)
    ledger.commit_round(0, attempt, "accepted", FIRST.id, REPORT)
    longer = changed(rounds=[*CONFIG["rounds"], {"name": "rotate", "steps": 45}])
    ledger.open_campaign("digits", longer, "hash-2")
    assert state(ledger) == [
        ("reverse", "accepted", 1),
        ("sort", "planned", 0),
        ("rotate", "planned", 0),
    ]
    Ledger(url(tmp_path)).open_campaign("digits", longer, "hash-2")
    with pytest.raises(StoreError, match=r'rounds\.2: .*"rotate".* -> \(absent\)'):
        ledger.open_campaign("digits", CONFIG, "hash-1")
    shuffled = changed(rounds=[CONFIG["rounds"][1], CONFIG["rounds"][0], *longer["rounds"][2:]])
    with pytest.raises(StoreError, match=r'rounds\.0\.name: "reverse" -> "sort"'):
        ledger.open_campaign("digits", shuffled, "hash-3")


def test_a_hash_that_differs_without_a_visible_change_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="config hash: hash-1 -> hash-2"):
        started(tmp_path).open_campaign("digits", CONFIG, "hash-2")

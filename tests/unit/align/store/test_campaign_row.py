"""A store continues its campaign, takes what no verdict rests on, and refuses anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from align.config.campaign import CampaignConfig
from align.config.file import load_campaign
from align.errors import StoreError, UserError
from align.store.changes.earlier_versions import as_read
from align.store.changes.expand import expand
from align.store.ledger.amendments import amendments_of
from align.store.ledger.ledger import Ledger
from align.store.ledger.tables.core import campaigns
from tests.unit.campaigns import campaign, raw_campaign
from tests.unit.ledgers import BASE, CONFIG, FIRST, REPORT, started, state, url

ROOT = Path(__file__).parents[4]


def changed(**values: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(CONFIG)), **values}


def test_the_same_configuration_continues(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    ledger.begin_round(0, "reverse", BASE.id)
    again = Ledger(url(tmp_path))
    again.open_campaign("digits", CONFIG, "hash-1")
    assert state(again) == [("reverse", "running", 1), ("sort", "planned", 0)]


def accepted(folder: Path) -> Ledger:
    """The campaign whose first round was accepted."""
    ledger = started(folder)
    attempt = ledger.begin_round(0, "reverse", BASE.id)
    ledger.enter_gating(0, attempt, FIRST.id)
    ledger.commit_round(0, attempt, "accepted", FIRST.id, REPORT)
    return ledger


def test_what_a_verdict_rests_on_is_refused_name_by_name(tmp_path: Path) -> None:
    ledger = accepted(tmp_path)
    config = changed(
        gate={"alpha": 0.05, "mode": "observe"},
        policy={"lora": None},
        rounds=[{"name": "reverse", "steps": 60}, {"steps": 45, "name": "sort"}],
    )
    with pytest.raises(StoreError) as caught:
        ledger.open_campaign("digits", config, "hash-2")
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines[1:3] == [
        "rounds.reverse.steps: 45 -> 60 (round 'reverse' was accepted, and its verdict rests on it)",
        'policy: (absent) -> {"lora": null} (the snapshots of decided rounds were made with it (reverse))',
    ]
    assert "restore the old values, or set store to another folder" in lines[-1]
    assert isinstance(caught.value, UserError)
    ledger.open_campaign("digits", CONFIG, "hash-1")
    assert amendments_of(ledger) == []


def test_what_no_verdict_rests_on_is_amended(tmp_path: Path) -> None:
    ledger = accepted(tmp_path)
    config = changed(
        gate={"alpha": 0.05, "mode": "observe"},
        rounds=[CONFIG["rounds"][0], {"steps": 60, "name": "sort"}],
    )
    for _ in range(2):
        ledger.open_campaign("digits", config, "hash-2", who="ana")
    (entry,) = amendments_of(ledger)
    assert entry.changes == ('gate.mode: (absent) -> "observe"', "rounds.sort.steps: 45 -> 60")
    assert (entry.who, entry.decisions) == ("ana", 1)


def test_many_changes_are_summed_up(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"(?s)k19: \(absent\) -> 19 \(.*\)\n    and 5 more"):
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
    shuffled = changed(rounds=[CONFIG["rounds"][1], CONFIG["rounds"][0], *longer["rounds"][2:]])
    with pytest.raises(StoreError, match=r"rounds\.sort: stands before reverse"):
        ledger.open_campaign("digits", shuffled, "hash-3")
    ledger.open_campaign("digits", CONFIG, "hash-1")
    assert state(ledger) == [("reverse", "accepted", 1), ("sort", "planned", 0)]


def test_a_hash_that_differs_without_a_visible_change_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="config hash: hash-1 -> hash-2"):
        started(tmp_path).open_campaign("digits", CONFIG, "hash-2")


def reopened(folder: Path, forgotten: str, **now: Any) -> Ledger:
    """A store of a version that had no such setting, opened by this one with a campaign of its own."""
    ledger, config = Ledger(url(folder)), campaign(folder)
    ledger.open_campaign(config.name, without(config.content(), forgotten), "hash-of-then")
    current = CampaignConfig.model_validate(raw_campaign(folder, **now))
    ledger.open_campaign(current.name, current.content(), current.hash(), read=as_read)
    return ledger


def without(value: Any, key: str) -> Any:
    """JSON without a key, wherever it stands."""
    if isinstance(value, dict):
        return {k: without(v, key) for k, v in value.items() if k != key}
    return [without(v, key) for v in value] if isinstance(value, list) else value


def test_a_store_that_does_not_know_a_setting_yet_has_its_default(tmp_path: Path) -> None:
    config = campaign(tmp_path)
    ledger = reopened(tmp_path, "meter_every")
    with ledger.database.read() as connection:
        row = connection.execute(select(campaigns)).one()
    # Written down: the default may be another one day.
    assert (json.loads(row.config), row.config_hash) == (config.content(), config.hash())
    assert [record.name for record in ledger.rounds()] == ["first", "second"]


def test_what_is_not_the_default_was_not_so_before(tmp_path: Path) -> None:
    defaults = {**raw_campaign(tmp_path)["defaults"], "meter_every": 7}
    (entry,) = amendments_of(reopened(tmp_path, "meter_every", defaults=defaults))
    assert entry.changes == ("defaults.meter_every: 15 -> 7",)


def test_what_else_has_changed_is_all_that_is_told(tmp_path: Path) -> None:
    (entry,) = amendments_of(reopened(tmp_path, "meter_every", seed=3))
    assert entry.changes == ("seed: 0 -> 3",)


def test_what_this_version_cannot_read_is_refused(tmp_path: Path) -> None:
    ledger, config = Ledger(url(tmp_path)), campaign(tmp_path)
    ledger.open_campaign(config.name, {**config.content(), "gone": 1}, "hash-of-then")
    with pytest.raises(StoreError, match=r"gone: 1 -> \(absent\)"):
        ledger.open_campaign(config.name, config.content(), config.hash(), read=as_read)


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda f: f.stem)
def test_what_is_stored_of_a_campaign_is_read_as_it_was(file: Path) -> None:
    config = expand(load_campaign(file).config, (), ())
    if config.rounds:
        stored = json.loads(json.dumps(config.content()))
        assert as_read(stored) == stored


OFF: dict[str, tuple[Any, Any]] = {
    "draw": ("mastery", "balanced"),
    "examples": (0.1, 0.0),
    "synthesis": ({"count": 4}, None),
    "answers": ({"by": "confidence"}, None),
    "pretraining": ({"source": "texts.jsonl"}, None),
}
"""Settings of replay in the defaults, and in a round that has none of them."""


@pytest.mark.parametrize("setting", OFF)
def test_a_round_that_switches_a_default_of_replay_off_goes_on_so(
    setting: str, tmp_path: Path
) -> None:
    raw = raw_campaign(tmp_path)
    first = {"name": "first", "algorithm": "sft", "data": "a.jsonl", "steps": 1}
    default, off = OFF[setting]
    raw["defaults"]["replay"] |= {setting: default}
    raw["rounds"] = [first, {**first, "name": "second", "replay": {setting: off}}]
    config = CampaignConfig.model_validate(raw)
    assert getattr(config.rounds[0].replay, setting) != getattr(config.rounds[1].replay, setting)
    assert as_read(json.loads(json.dumps(config.content()))) == config.content()
    ledger = Ledger(url(tmp_path))
    for _ in range(2):
        ledger.open_campaign(config.name, config.content(), config.hash(), read=as_read)
    assert amendments_of(ledger) == []

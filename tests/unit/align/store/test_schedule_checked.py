"""A round that cannot run is not claimed, and the message for a claimed one names it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import insert, literal, select
from typer.testing import CliRunner

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.report.forecast.forecast import forecast
from align.schedule.claims import Dues
from align.schedule.inbox.inbox import Inbox
from align.store.ledger.due_rounds import claimed_rounds
from align.store.ledger.ledger import Ledger
from align.store.ledger.tables.core import rounds as table
from align.store.store import open_ledger
from launch.cli import app
from launch.commands.schedule import claim
from rollouts.errors import UserError
from tests.unit.align.schedule.test_inbox_round import drop, pairs
from tests.unit.align.store.test_schedule_claims import FED, NIGHTLY
from tests.unit.campaigns import Starter, Watcher, campaign, no_engine, raw_campaign, rounds
from tests.unit.inboxes import feedback
from tests.unit.schedules import START

SPECIAL: dict[str, Any] = {"name": "special", "manual": True}
BROKEN = {"prompts": "demo://rot"}


def claims_of(ledger: Ledger) -> list[str]:
    return [one.spec.name for one in claimed_rounds(ledger.database)]


def run_now(folder: Path, *options: str, **spec: Any) -> BaseException | None:
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(raw_campaign(folder, rounds=rounds({**SPECIAL, **spec}))))
    return (
        CliRunner().invoke(app, ["schedule", "run-now", str(path), "special", *options]).exception
    )


def test_a_round_that_a_person_asks_for(tmp_path: Path) -> None:
    refused = run_now(tmp_path, **BROKEN)
    assert isinstance(refused, UserError)
    assert "unknown demo source 'rot'" in str(refused)
    assert "fell due" not in str(refused)
    assert claims_of(open_ledger(campaign(tmp_path))) == []


@pytest.mark.parametrize("address", ["nowhere", "ray://10.0.0.5:10001", "127.0.0.1:1"])
def test_a_cluster_that_cannot_be_joined(tmp_path: Path, address: str) -> None:
    refused = run_now(tmp_path, "--address", address)
    assert isinstance(refused, UserError)
    assert refused.where == "--address"
    assert claims_of(open_ledger(campaign(tmp_path))) == []


def test_what_falls_due(tmp_path: Path) -> None:
    config = campaign(tmp_path, rounds=rounds({**NIGHTLY, **BROKEN}))
    claim(config, START)
    tomorrow = START + timedelta(days=1)
    with pytest.raises(UserError, match="unknown demo source 'rot'"):
        claim(config, tomorrow)
    ledger = open_ledger(config)
    assert claims_of(ledger) == []
    mended = campaign(tmp_path, rounds=rounds(NIGHTLY))
    (due,) = claim(mended, tomorrow).due
    assert claims_of(ledger) == [due.round] == ["nightly-1"]


def begun(folder: Path) -> CampaignConfig:
    """A mended file whose round fell due before, with a mistake in it."""
    broken = campaign(folder, rounds=rounds({**SPECIAL, **BROKEN}))
    Dues(open_ledger(broken).database, broken).claim_now("special", START)
    return campaign(folder, rounds=rounds(SPECIAL, {"name": "plain"}))


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_round_that_fell_due_is_told_by_name(tmp_path: Path, command: str) -> None:
    config = begun(tmp_path)
    with pytest.raises(UserError, match="unknown demo source 'rot'") as refused:
        if command == "run":
            run_campaign(config, start_engine=no_engine, observer=Watcher())
        else:
            forecast(config)
    assert refused.value.where == "round special-1, as it fell due 2026-11-20 12:00 UTC"
    assert "keel schedule skip CAMPAIGN special-1" in str(refused.value.remedy)


def test_a_mistake_of_the_file_is_told_as_one(tmp_path: Path) -> None:
    begun(tmp_path)
    config = campaign(tmp_path, rounds=rounds(SPECIAL, {"name": "plain", "prompts": "demo://inv"}))
    with pytest.raises(UserError, match="unknown demo source 'inv'") as refused:
        run_campaign(config, start_engine=no_engine, observer=Watcher())
    assert "fell due" not in str(refused.value)


def test_a_run_with_nothing_but_a_round_without_rows_ends_well(tmp_path: Path) -> None:
    config = campaign(tmp_path, rounds=rounds(FED))
    inbox = Inbox(open_ledger(config).database)
    inbox.add("taste", [feedback(n) for n in range(5)])
    Dues(inbox.database, config).claim(START)
    inbox.quarantine("taste", range(1, 6), "spam")
    watcher = Watcher()
    run_campaign(config, start_engine=no_engine, observer=watcher)
    assert [note for note in watcher.notes if not note.startswith("warning: ")] == [
        "fed-1 is skipped: nothing is left in inbox://taste for it",
        "no round is due; nothing to run",
    ]


def test_a_killed_round_whose_rows_are_gone_does_not_hold_up_the_others(tmp_path: Path) -> None:
    night = {**FED, "data": {"source": "inbox://taste", "heldout": 0.3}, "steps": 2}
    config = campaign(tmp_path, rounds=rounds(night, SPECIAL))
    drop(tmp_path, pairs("demo://rev?n=60"))
    claim(config, START)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        run_campaign(config, start_engine=Starter(), observer=Watcher(stop_at=("fed-1", 1)))
    ledger = open_ledger(config)
    with ledger.database.write() as connection:
        killed = select(
            table.c.index, table.c.attempt + 1, table.c.name, literal("running"), table.c.parent
        ).where(table.c.attempt == 1)
        columns = ["index", "attempt", "name", "state", "parent"]
        connection.execute(insert(table).from_select(columns, killed))
    inbox = Inbox(ledger.database)
    inbox.quarantine("taste", range(1, 200), "spam")
    Dues(ledger.database, config).claim_now("special", START)
    watcher = Watcher()
    run_campaign(config, start_engine=Starter(), observer=watcher)
    assert "fed-1 is skipped: nothing is left in inbox://taste for it" in watcher.notes
    assert [(r.name, r.state) for r in ledger.rounds()] == [
        ("fed-1", "skipped"), ("special-1", "accepted"),
    ]  # fmt: skip

"""Claims on a real database: each due key once, across crashes and edits."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from align.config import CampaignConfig
from align.inbox.inbox import Inbox
from align.memory.ledger import Ledger
from align.schedule.claims import Dues, claimed_rounds
from align.schedule.expand import expand, expanded
from rollouts.errors import UserError
from tests.unit.campaigns import campaign, rounds
from tests.unit.inboxes import feedback
from tests.unit.ledgers import python
from tests.unit.schedules import START

NIGHTLY = {"name": "nightly", "every": "0 3 * * *"}
FED: dict[str, Any] = {
    "name": "fed",
    "algorithm": {"name": "dpo", "pairs": "file"},
    "prompts": None,
    "rewards": [],
    "data": "inbox://taste",
    "when": {"new_pairs": 5},
}


def opened(folder: Path, *specs: dict[str, Any]) -> tuple[Ledger, CampaignConfig]:
    return Ledger(f"sqlite:///{folder / 'ledger.sqlite'}"), campaign(folder, rounds=rounds(*specs))


def verdict(folder: Path, name: str, index: int) -> None:
    """A round of this name is rejected."""
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger, ledger:
        ledger.execute(
            'INSERT INTO rounds ("index", attempt, name, state, candidate) VALUES (?, 1, ?, ?, ?)',
            (index, name, "rejected", "c"),
        )


def names(config: CampaignConfig) -> list[str]:
    return [spec.name for spec in config.rounds]


def test_the_database_refuses_a_second_claim_of_a_key(tmp_path: Path) -> None:
    ledger, config = opened(tmp_path, NIGHTLY)
    dues = Dues(ledger.database, config)
    dues.claim(START)
    dues.claim(START + timedelta(days=1))
    columns = "schedule, due_key, 'x', spec, reason, 0, 0, claimed"
    again = f"INSERT INTO due_claims SELECT NULL, {columns} FROM due_claims"
    with pytest.raises(IntegrityError, match="UNIQUE"), ledger.database.write() as connection:
        connection.exec_driver_sql(again)


def test_looking_changes_nothing(tmp_path: Path) -> None:
    ledger, config = opened(tmp_path, NIGHTLY)
    dues = Dues(ledger.database, config)
    dues.claim(START)
    tomorrow = START + timedelta(days=1)
    seen = [dues.look(tomorrow), dues.look(tomorrow)]
    assert seen[0] == seen[1] == dues.claim(tomorrow)
    assert claimed_rounds(ledger.database)
    assert dues.look(tomorrow).due[0].claimed


def test_a_new_or_changed_clock_owes_nothing(tmp_path: Path) -> None:
    ledger, config = opened(tmp_path, NIGHTLY)
    assert not Dues(ledger.database, config).claim(START).due
    changed = campaign(tmp_path, rounds=rounds({**NIGHTLY, "every": "0 13 * * *"}))
    after = START + timedelta(hours=2)
    found = Dues(ledger.database, changed).claim(after)
    assert [one.next for one in found.waits] == [START + timedelta(days=1, hours=1)]


def test_a_crash_after_the_claim_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """A process that has claimed is killed before the round is so much as planned."""
    ledger, config = opened(tmp_path, NIGHTLY)
    (tmp_path / "campaign.json").write_text(config.model_dump_json())
    Dues(ledger.database, config).claim(START)
    script = """
import os, signal, sys
from datetime import datetime
from align.config import CampaignConfig
from align.memory.ledger import Ledger
from align.schedule.claims import Dues

folder, now = sys.argv[1:]
config = CampaignConfig.model_validate_json(open(f"{folder}/campaign.json").read())
Dues(Ledger(f"sqlite:///{folder}/ledger.sqlite").database, config).claim(datetime.fromisoformat(now))
os.kill(os.getpid(), signal.SIGKILL)
"""
    tomorrow = START + timedelta(days=1)
    process = python(script, str(tmp_path), tomorrow.isoformat())
    assert process.wait(60) == -9
    assert ledger.rounds() == []
    for later in (tomorrow, tomorrow + timedelta(days=3)):
        (due,) = Dues(ledger.database, config).claim(later).due
        assert (due.round, due.key, due.claimed) == ("nightly-1", "cron/2026-11-21T03:00Z", True)
    assert names(expanded(config, ledger)) == ["nightly-1"]
    verdict(tmp_path, "nightly-1", 0)
    (due,) = Dues(ledger.database, config).claim(tomorrow + timedelta(days=3)).due
    assert (due.round, due.key) == ("nightly-2", "cron/2026-11-24T03:00Z")


def test_arrivals_are_those_of_the_inbox(tmp_path: Path) -> None:
    ledger, config = opened(tmp_path, FED)
    now = START
    inbox = Inbox(ledger.database, clock=lambda: now.timestamp())
    dues = Dues(ledger.database, config)
    inbox.add("taste", [feedback(n) for n in range(4)])
    assert not dues.claim(now).due
    inbox.add("taste", [feedback(3), feedback(4)])
    (due,) = dues.claim(now).due
    assert due.reason == "5 of 5 new rows in inbox://taste"
    take = inbox.take("fed-1", "taste")
    assert take is not None
    assert take.num_rows == 5


def test_a_person_asks(tmp_path: Path) -> None:
    ledger, config = opened(tmp_path, FED, {"name": "plain"}, {"name": "asked", "manual": True})
    dues = Dues(ledger.database, config)
    with pytest.raises(UserError, match="no round 'fedd' has a schedule") as raised:
        dues.claim_now("fedd", START)
    assert "did you mean 'fed'?" in str(raised.value)
    with pytest.raises(UserError, match="no round 'plain' has a schedule"):
        dues.claim_now("plain", START)
    with pytest.raises(UserError, match="nothing waits in inbox://taste"):
        dues.claim_now("fed", START)
    assert dues.claim_now("asked", START).round == "asked-1"
    assert dues.claim_now("asked", START).claimed
    verdict(tmp_path, "asked-1", 0)
    assert dues.claim_now("asked", START + timedelta(seconds=1)).round == "asked-2"
    Inbox(ledger.database).add("taste", [feedback(1)])
    assert dues.claim_now("fed", START).round == "fed-1"


def test_an_edit_changes_rounds_to_come_and_none_that_fell_due(tmp_path: Path) -> None:
    ledger, config = opened(tmp_path, {**NIGHTLY, "steps": 3})
    Dues(ledger.database, config).claim(START)
    Dues(ledger.database, config).claim(START + timedelta(days=1))
    verdict(tmp_path, "nightly-1", 0)
    edited = campaign(tmp_path, rounds=rounds({**NIGHTLY, "steps": 9}))
    Dues(ledger.database, edited).claim(START + timedelta(days=2))
    found = expanded(edited, ledger)
    assert [(s.name, s.steps) for s in found.rounds] == [("nightly-1", 3), ("nightly-2", 9)]
    removed = campaign(tmp_path, rounds=rounds({"name": "last"}))
    assert names(expanded(removed, ledger)) == ["nightly-1", "last", "nightly-2"]


def test_a_campaign_without_schedules_is_as_it_was(tmp_path: Path) -> None:
    ledger, config = opened(tmp_path, {}, {})
    assert expanded(config, ledger) is config


def test_rounds_keep_their_place(tmp_path: Path) -> None:
    """Plain rounds and those that fell due, whatever is added to the file later."""
    file = campaign(tmp_path, rounds=rounds({"name": "a"}, NIGHTLY, {"name": "b"}))
    once = campaign(tmp_path, rounds=rounds({"name": "nightly-1"}, {"name": "nightly-2"})).rounds
    assert names(expand(file, (), ())) == ["a", "b"]
    assert names(expand(file, ["a"], once[:1])) == ["a", "b", "nightly-1"]
    planned = ["a", "nightly-1"]
    assert names(expand(file, planned, once)) == ["a", "nightly-1", "b", "nightly-2"]
    first = expand(file, ["a", "b", "nightly-1"], once[:1])
    second = expand(file, ["a", "b", "nightly-1"], once)
    assert second.hash(3) == first.hash()
    assert second.content()["rounds"][:3] == first.content()["rounds"]


def test_the_ledger_takes_appended_rounds(tmp_path: Path) -> None:
    ledger, config = opened(tmp_path, {"name": "a"}, NIGHTLY)
    dues = Dues(ledger.database, config)
    dues.claim(START)
    for day in range(3):
        found = expanded(config, ledger)
        ledger.open_campaign(found.name, found.content(), found.hash())
        _decide(tmp_path, ledger.rounds()[-1].name)
        dues.claim(START + timedelta(days=day + 1))
    assert [r.name for r in ledger.rounds()] == ["a", "nightly-1", "nightly-2"]


def _decide(folder: Path, name: str) -> None:
    index = {"a": 0, "nightly-1": 1, "nightly-2": 2}[name]
    verdict(folder, name, index)


def test_due_at(tmp_path: Path) -> None:
    """Moments survive the database."""
    ledger, config = opened(tmp_path, NIGHTLY)
    Dues(ledger.database, config).claim(START)
    now = datetime.fromisoformat("2026-11-21T04:30:00.250+01:00")
    Dues(ledger.database, config).claim(now)
    (claim,) = claimed_rounds(ledger.database)
    assert (claim.claimed, claim.key) == (now, "cron/2026-11-21T03:00Z")

"""Claims on a real database: each due key once, across crashes and edits."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from align.config.campaign import CampaignConfig
from align.errors import StoreError
from align.schedule.claims import Dues
from align.schedule.inbox.inbox import Inbox
from align.store.changes.expand import expand, expanded
from align.store.ledger.due_rounds import claimed_rounds
from align.store.ledger.ledger import Ledger
from align.store.ledger.reservations import consume
from align.store.ledger.tables.core import rounds as table
from rollouts.errors import UserError
from tests.patience import patient
from tests.unit.campaigns import campaign, rounds
from tests.unit.inboxes import feedback
from tests.unit.ledgers import python, url
from tests.unit.schedules import START, verdict

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
    return Ledger(url(folder)), campaign(folder, rounds=rounds(*specs))


def names(config: CampaignConfig) -> list[str]:
    return [spec.name for spec in config.rounds]


def test_the_database_refuses_a_second_claim_of_a_key(tmp_path: Path) -> None:
    ledger, config = opened(tmp_path, NIGHTLY)
    dues = Dues(ledger.database, config)
    dues.claim(START)
    dues.claim(START + timedelta(days=1))
    columns = "schedule, due_key, round, spec, reason, newest, watermark, claimed"
    other = columns.replace("round", "'x'")
    again = f"INSERT INTO due_claims ({columns}) SELECT {other} FROM due_claims"
    with pytest.raises(IntegrityError, match=r"(?i)unique"), ledger.database.write() as connection:
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
from align.config.campaign import CampaignConfig
from align.errors import StoreError
from align.store.ledger.ledger import Ledger
from align.schedule.claims import Dues

folder, url, now = sys.argv[1:]
config = CampaignConfig.model_validate_json(open(f"{folder}/campaign.json").read())
Dues(Ledger(url).database, config).claim(datetime.fromisoformat(now))
os.kill(os.getpid(), signal.SIGKILL)
"""
    tomorrow = START + timedelta(days=1)
    process = python(script, str(tmp_path), url(tmp_path), tomorrow.isoformat())
    assert process.wait(patient(60)) == -9
    assert ledger.rounds() == []
    for later in (tomorrow, tomorrow + timedelta(days=3)):
        (due,) = Dues(ledger.database, config).claim(later).due
        assert (due.round, due.key, due.claimed) == ("nightly-1", "cron/2026-11-21T03:00Z", True)
    assert names(expanded(config, ledger)) == ["nightly-1"]
    verdict(ledger, "nightly-1", 0)
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
    reservation = inbox.reserve("fed-1", "taste")
    assert reservation is not None
    assert reservation.num_rows == 5


@pytest.mark.parametrize("use", ["all", "last:9"])
def test_rounds_that_read_rows_again_count_from_their_own_last_claim(
    tmp_path: Path, use: str
) -> None:
    again = {**FED, "name": "again", "data": {"source": "inbox://taste", "use": use}}
    ledger, config = opened(tmp_path, FED, again)
    inbox, dues = Inbox(ledger.database), Dues(ledger.database, config)

    def due(*numbers: int) -> list[str]:
        """What is due when these have arrived; `again` reads and gets its verdict, and uses up nothing."""
        inbox.add("taste", [feedback(n) for n in numbers])
        found = [one.round for one in dues.claim(START).due]
        for name in found:
            if name.startswith("again"):
                assert inbox.reserve(name, "taste", use=use) is not None
                verdict(ledger, name, len(ledger.rounds()))
                with ledger.database.write() as connection:
                    consume(connection, name, "accepted", START.isoformat())
        return found

    assert due(0, 1, 2) == []
    assert due(3, 4) == ["fed-1", "again-1"]
    assert due(5, 6, 7, 8) == ["fed-1"]
    assert inbox.waiting("taste").count == 9
    assert due(9) == ["fed-1", "again-2"]
    inbox.reserve("fed-1", "taste")
    verdict(ledger, "fed-1", len(ledger.rounds()))
    with ledger.database.write() as connection:
        consume(connection, "fed-1", "accepted", START.isoformat())
    assert inbox.waiting("taste").count == 0
    assert due(10, 11) == []
    assert due(12, 13, 14) == ["fed-2", "again-3"]
    waits = dues.look(START).waits
    assert [one.why for one in waits] == ["0 of 5 new rows in inbox://taste"]
    assert dues.claim_now("again", START).round == "again-4"


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
    verdict(ledger, "asked-1", 0)
    assert dues.claim_now("asked", START + timedelta(seconds=1)).round == "asked-2"
    Inbox(ledger.database).add("taste", [feedback(1)])
    assert dues.claim_now("fed", START).round == "fed-1"


def test_an_edit_changes_rounds_to_come_and_none_that_fell_due(tmp_path: Path) -> None:
    ledger, config = opened(tmp_path, {**NIGHTLY, "steps": 3})
    Dues(ledger.database, config).claim(START)
    Dues(ledger.database, config).claim(START + timedelta(days=1))
    verdict(ledger, "nightly-1", 0)
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
        name = ledger.rounds()[-1].name
        verdict(ledger, name, {"a": 0, "nightly-1": 1, "nightly-2": 2}[name])
        dues.claim(START + timedelta(days=day + 1))
    assert [r.name for r in ledger.rounds()] == ["a", "nightly-1", "nightly-2"]


def test_due_at(tmp_path: Path) -> None:
    """Moments survive the database."""
    ledger, config = opened(tmp_path, NIGHTLY)
    Dues(ledger.database, config).claim(START)
    now = datetime.fromisoformat("2026-11-21T04:30:00.250+01:00")
    Dues(ledger.database, config).claim(now)
    (claim,) = claimed_rounds(ledger.database)
    assert (claim.claimed, claim.key) == (now, "cron/2026-11-21T03:00Z")


def test_a_clock_first_seen_when_it_was_ahead_starts_again(tmp_path: Path) -> None:
    ledger, config = opened(tmp_path, NIGHTLY)
    dues = Dues(ledger.database, config)
    dues.claim(START + timedelta(days=1000))
    (waits,) = dues.claim(START).waits
    assert waits.next == START + timedelta(hours=15)
    (due,) = dues.claim(waits.next).due
    assert due.key == "cron/2026-11-21T03:00Z"


def test_a_renamed_template_waits_for_the_round_that_fell_due_under_the_old_name(
    tmp_path: Path,
) -> None:
    ledger, config = opened(tmp_path, FED)
    inbox = Inbox(ledger.database)
    inbox.add("taste", [feedback(n) for n in range(5)])
    Dues(ledger.database, config).claim(START)
    renamed = Dues(ledger.database, campaign(tmp_path, rounds=rounds({**FED, "name": "renamed"})))
    found = renamed.claim(START)
    assert [due.round for due in found.due] == ["fed-1"]
    assert [one.why for one in found.waits] == [
        "waits for the verdict on fed-1, which reads inbox://taste too"
    ]
    with pytest.raises(UserError, match="is read by fed-1, which fell due before"):
        renamed.claim_now("renamed", START)
    inbox.reserve("fed-1", "taste")
    verdict(ledger, "fed-1", 0)
    with ledger.database.write() as connection:
        consume(connection, "fed-1", "accepted", START.isoformat())
    assert not renamed.claim(START).due
    inbox.add("taste", [feedback(n) for n in range(5, 10)])
    assert [due.round for due in renamed.claim(START).due] == ["renamed-1"]


def test_a_round_whose_rows_were_removed_is_over_and_the_next_needs_enough(tmp_path: Path) -> None:
    ledger, config = opened(tmp_path, FED)
    inbox, dues = Inbox(ledger.database), Dues(ledger.database, config)
    inbox.add("taste", [feedback(n) for n in range(5)])
    dues.claim(START)
    inbox.quarantine("taste", range(1, 6), "spam")
    with pytest.raises(UserError, match="nothing waits in inbox://taste for 'fed-1'"):
        dues.claim_now("fed", START)
    found = dues.claim(START)
    assert found.due == ()
    assert "nothing is left in inbox://taste for fed-1" in found.waits[0].why
    (skip,) = dues.look(START).skips
    assert (skip.round, skip.who) == ("fed-1", "keel")
    inbox.add("taste", [feedback(n) for n in range(5, 9)])
    assert dues.claim(START).due == ()
    inbox.add("taste", [feedback(9)])
    assert [due.round for due in dues.claim(START).due] == ["fed-2"]


def test_a_round_that_does_not_repeat_waits_for_more_rows(tmp_path: Path) -> None:
    ledger, config = opened(tmp_path, {**FED, "repeat": False})
    inbox, dues = Inbox(ledger.database), Dues(ledger.database, config)
    inbox.add("taste", [feedback(n) for n in range(5)])
    dues.claim(START)
    inbox.quarantine("taste", range(1, 6), "spam")
    for _ in range(2):
        assert dues.claim(START).due == ()
    inbox.add("taste", [feedback(5)])
    assert [due.round for due in dues.claim(START).due] == ["fed"]


def test_a_round_that_runs_is_not_skipped_for_rows_that_are_set_aside(tmp_path: Path) -> None:
    ledger, config = opened(tmp_path, FED)
    inbox, dues = Inbox(ledger.database), Dues(ledger.database, config)
    inbox.add("taste", [feedback(n) for n in range(5)])
    dues.claim(START)
    running = {"index": 0, "attempt": 1, "name": "fed-1", "state": "running"}
    with ledger.database.write() as connection:
        connection.execute(insert(table).values(running))
    inbox.quarantine("taste", range(1, 6), "spam")
    dues.claim(START)
    assert dues.look(START).skips == ()


def test_only_what_was_checked_is_claimed(tmp_path: Path) -> None:
    ledger, config = opened(tmp_path, NIGHTLY, {**NIGHTLY, "name": "weekly"})
    dues, tomorrow = Dues(ledger.database, config), START + timedelta(days=1)
    dues.claim(START)
    assert len(dues.claim(tomorrow, checked=()).due) == 2
    assert claimed_rounds(ledger.database) == []
    assert len(dues.claim(tomorrow, checked=["weekly"]).due) == 2
    assert [one.spec.name for one in claimed_rounds(ledger.database)] == ["weekly-1"]


def test_what_an_older_version_has_claimed(tmp_path: Path) -> None:
    """A setting that it did not know has its default; one that this one does not know is refused."""
    ledger, config = opened(tmp_path, {"name": "asked", "manual": True})
    Dues(ledger.database, config).claim_now("asked", START)
    (claim,) = claimed_rounds(ledger.database)
    edit = "UPDATE due_claims SET spec = json_{}(spec, '$.{}'{})"
    with ledger.database.write() as connection:
        connection.exec_driver_sql(edit.format("remove", "meter_every", ""))
    assert claimed_rounds(ledger.database) == [claim]
    with ledger.database.write() as connection:
        connection.exec_driver_sql(edit.format("set", "gone", ", 1"))
    with pytest.raises(StoreError, match="round asked-1, as it fell due: gone: unknown key"):
        claimed_rounds(ledger.database)

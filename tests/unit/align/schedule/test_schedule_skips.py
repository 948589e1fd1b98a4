"""A due round that a person passes over: recorded, over, and nothing of its data spent."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from sqlite3 import IntegrityError
from typing import Any

import pytest
from typer.testing import CliRunner

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.errors import StaleAttempt, StoreBusy
from align.gate.evidence import Evidence, stored_evidence
from align.report.records.acts import acts_of
from align.report.records.history import entries
from align.schedule.claims import Dues
from align.schedule.due import Skip
from align.schedule.inbox.inbox import Inbox
from align.schedule.skips import skip_round, skips
from align.store.changes.expand import expanded
from align.store.ledger.ledger import Ledger
from align.store.store import Store
from launch.cli import app
from rollouts.errors import UserError
from tests.unit.align.store.test_schedule_claims import FED, NIGHTLY, names, opened
from tests.unit.campaigns import Starter, Watcher, campaign, no_engine, raw_campaign, rounds
from tests.unit.inboxes import feedback
from tests.unit.ledgers import BASE, raw, url
from tests.unit.schedules import START, verdict

TOMORROW = START + timedelta(days=1)


def skip(ledger: Ledger, config: CampaignConfig, name: str, now: Any = TOMORROW) -> Skip:
    return skip_round(ledger, config, name, who="ada", reason=" bad data ", now=now)


def planned(ledger: Ledger, config: CampaignConfig) -> None:
    """The campaign as a runner would begin it."""
    found = expanded(config, ledger)
    ledger.open_campaign(found.name, found.content(), found.hash())
    ledger.record_snapshot(BASE)
    if ledger.alias("production") is None:
        ledger.set_alias_initial("production", BASE.id)


def test_what_nobody_has_claimed_yet(tmp_path: Path) -> None:
    ledger, config = opened(tmp_path, NIGHTLY)
    dues = Dues(ledger.database, config)
    dues.claim(START)
    made = skip(ledger, config, "nightly")
    assert made == Skip(
        schedule="nightly", key="cron/2026-11-21T03:00Z", round="nightly-1", who="ada",
        reason="bad data", time=TOMORROW,
    )  # fmt: skip
    assert skips(ledger) == (made,)
    found = dues.claim(TOMORROW)
    assert (found.due, found.skips) == ((), (made,))
    assert names(expanded(config, ledger)) == []
    (due,) = dues.claim(TOMORROW + timedelta(days=1)).due
    assert (due.round, due.key) == ("nightly-2", "cron/2026-11-22T03:00Z")
    assert names(expanded(config, ledger)) == ["nightly-2"]


def test_rows_stay_unused(tmp_path: Path) -> None:
    """Rows of a round that had taken them stay unused, too."""
    ledger, config = opened(tmp_path, FED)
    inbox, dues = Inbox(ledger.database, clock=START.timestamp), Dues(ledger.database, config)
    inbox.add("taste", [feedback(n) for n in range(5)])
    assert dues.claim(START).due
    assert inbox.reserve("fed-1", "taste") is not None
    skip(ledger, config, "fed-1", START)
    assert (inbox.reservations(), inbox.waiting("taste").count) == ([], 5)
    inbox.add("taste", [feedback(n) for n in range(5, 10)])
    (due,) = dues.claim(START).due
    assert (due.round, due.reason) == ("fed-2", "5 of 5 new rows in inbox://taste")
    reservation = inbox.reserve("fed-2", "taste")
    assert reservation is not None
    assert (reservation.above, reservation.num_rows) == (0, 10)


def test_a_round_that_has_begun_and_failed(tmp_path: Path) -> None:
    ledger, config = opened(tmp_path, {"name": "plain"}, NIGHTLY)
    dues = Dues(ledger.database, config)
    dues.claim(START)
    planned(ledger, config)
    verdict(ledger, "plain", 0)
    dues.claim(TOMORROW)
    planned(ledger, config)
    attempt = ledger.begin_round(1, "nightly-1", BASE.id)
    ledger.commit_round(1, attempt, "failed", None, {"error": "half of the rewards failed"})
    skip(ledger, config, "nightly")
    assert [(r.name, r.state) for r in ledger.rounds()] == [
        ("plain", "rejected"), ("nightly-1", "skipped"),
    ]  # fmt: skip
    assert ledger.closed() == {"plain", "nightly-1"}
    # The campaign keeps its place: what was planned is never taken out again.
    assert names(expanded(config, ledger)) == ["plain", "nightly-1"]
    with pytest.raises(StaleAttempt, match="'nightly-1' was skipped"):
        ledger.begin_round(1, "nightly-1", BASE.id)
    assert not dues.claim(TOMORROW).due
    evidence = Evidence(store=Store(tmp_path, ledger), config=expanded(config, ledger))
    assert evidence.due_index() == 2
    assert [record.name for record in evidence.committed()] == ["plain"]


def test_a_running_round_is_not_touched_and_a_killed_one_is_ended(tmp_path: Path) -> None:
    ledger, config = opened(tmp_path, NIGHTLY, {"name": "other"})
    dues = Dues(ledger.database, config)
    dues.claim(START)
    dues.claim(TOMORROW)
    planned(ledger, config)
    index = next(r.index for r in ledger.rounds() if r.name == "nightly-1")
    ledger.begin_round(index, "nightly-1", BASE.id)
    with ledger.lease("keel run"), pytest.raises(StoreBusy, match="keel run is already running"):
        skip(ledger, config, "nightly")
    assert skips(ledger) == ()
    skip(ledger, config, "nightly")
    assert [r.state for r in ledger.attempts() if r.index == index] == ["planned", "skipped"]
    with raw(tmp_path) as connection:
        states = "SELECT state, ended FROM rounds WHERE name = 'nightly-1' AND attempt = 1"
        ((state, ended),) = connection.execute(states).fetchall()
    assert (state, ended) == ("failed", "2026-11-21T12:00:00.000+00:00")
    # Nothing of it is in the way of the others.
    assert ledger.begin_round(1 - index, "other", BASE.id) == 1


def test_other_rounds_are_skipped_while_a_runner_is_at_work(tmp_path: Path) -> None:
    ledger, config = opened(tmp_path, NIGHTLY, {**NIGHTLY, "name": "weekly"})
    dues = Dues(ledger.database, config)
    dues.claim(START)
    with ledger.lease("keel run"):
        assert skip(ledger, config, "weekly").round == "weekly-1"
    assert [due.round for due in dues.claim(TOMORROW).due] == ["nightly-1"]


def test_what_is_not_due_cannot_be_skipped(tmp_path: Path) -> None:
    ledger, config = opened(tmp_path, NIGHTLY, {"name": "plain"})
    Dues(ledger.database, config).claim(START)
    for name, why in {
        "nightly": "'nightly' is not due: the next tick is 2026-11-21 03:00 UTC",
        "nightly-1": "'nightly-1' is not known",
        "nigthly": "did you mean 'nightly'?",
        "plain": "'plain' has no schedule",
    }.items():
        with pytest.raises(UserError) as refused:
            skip(ledger, config, name, START)
        assert why in str(refused.value)
        assert refused.value.exit_code == 2
    skip(ledger, config, "nightly")
    with pytest.raises(UserError, match="'nightly-1' was skipped before"):
        skip(ledger, config, "nightly-1")
    later = TOMORROW + timedelta(days=1)
    Dues(ledger.database, config).claim(later)
    verdict(ledger, "nightly-2", 0)
    with pytest.raises(UserError, match="'nightly-2' has its verdict"):
        skip(ledger, config, "nightly-2", later)
    assert len(skips(ledger)) == 1


def test_a_round_whose_schedule_has_left_the_file(tmp_path: Path) -> None:
    ledger, config = opened(tmp_path, NIGHTLY)
    Dues(ledger.database, config).claim(START)
    Dues(ledger.database, config).claim(TOMORROW)
    without = campaign(tmp_path, rounds=rounds({"name": "last"}))
    assert names(expanded(without, ledger)) == ["last", "nightly-1"]
    skip(ledger, without, "nightly-1")
    assert names(expanded(without, ledger)) == ["last"]


def test_the_record_only_grows(tmp_path: Path) -> None:
    ledger, config = opened(tmp_path, NIGHTLY)
    Dues(ledger.database, config).claim(START)
    skip(ledger, config, "nightly")
    for change in ("UPDATE due_skips SET who = 'nobody'", "DELETE FROM due_skips"):
        with raw(tmp_path) as connection, pytest.raises(IntegrityError, match="append-only"):
            connection.execute(change)
    assert [one.who for one in skips(Ledger(url(tmp_path)))] == ["ada"]


def test_a_campaign_goes_on_after_a_round_that_was_skipped(tmp_path: Path) -> None:
    """The first round fails in the middle; skipped, it is over, and the next one of its kind runs."""
    special = {"name": "special", "manual": True, "steps": 2}
    config = campaign(tmp_path, rounds=rounds({}, special))
    ledger = Ledger(config.ledger_url)
    dues = Dues(ledger.database, config)
    dues.claim_now("special", START)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        run_campaign(config, start_engine=Starter(), observer=Watcher(("special-1", 1)))
    skip(ledger, config, "special")
    watcher = Watcher()
    run_campaign(config, start_engine=no_engine, observer=watcher)
    assert watcher.notes[-1].endswith("nothing to run")
    dues.claim_now("special", TOMORROW)
    evidence = run_campaign(config, start_engine=Starter(), observer=Watcher())
    found = {entry.name: entry for entry in entries(evidence)}
    assert {name: entry.state for name, entry in found.items()} == {
        "round0": "accepted", "special-1": "skipped", "special-2": "accepted",
    }  # fmt: skip
    assert found["special-1"].skipped == skips(ledger)[0].sentence
    assert [entry.skipped for name, entry in found.items() if name != "special-1"] == [None, None]
    parent = next(r.parent for r in ledger.rounds() if r.name == "special-2")
    assert parent == found["round0"].candidate


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "campaign.yaml"
    manual = {"name": "special", "manual": True}
    file.write_text(json.dumps(raw_campaign(tmp_path, rounds=rounds({}, manual))))
    early = CliRunner().invoke(app, ["schedule", "skip", str(file), "special"])
    assert isinstance(early.exception, UserError)
    assert "nothing has happened in this store yet" in str(early.exception)
    assert not (tmp_path / "store").exists()

    config = campaign(tmp_path, rounds=rounds({}, manual))
    run_campaign(config, start_engine=Starter(), observer=Watcher())
    Dues(Ledger(config.ledger_url).database, config).claim_now("special", START)
    monkeypatch.setattr("align.store.ledger.amendments.getuser", lambda: "ada")
    words = ["schedule", "skip", str(file), "special", "--reason", "bad [data]"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    first, second = done.stdout.splitlines()
    assert first.startswith("special-1 was skipped by ada on ")
    assert first.endswith(": bad [data] (special/manual/2026-11-20T12:00:00Z)")
    assert second.startswith("not yet  special: runs when asked")

    shown = CliRunner().invoke(app, ["schedule", "next", str(file)]).output
    assert f"skipped  {first}" in shown
    told = json.loads(CliRunner().invoke(app, ["schedule", "next", str(file), "--json"]).output)
    assert [(one["round"], one["who"]) for one in told["skips"]] == [("special-1", "ada")]
    listed = CliRunner().invoke(app, ["rounds", "list", str(file)])
    assert listed.exit_code == 0
    assert first in listed.stdout
    told = json.loads(CliRunner().invoke(app, ["rounds", "list", str(file), "--json"]).output)
    assert [(one["name"], one["state"], one["index"]) for one in told] == [
        ("round0", "accepted", 0), ("special-1", "skipped", None),
    ]  # fmt: skip
    (act,) = acts_of(stored_evidence(config))
    assert act.what == "round special-1 was skipped by ada (special/manual/2026-11-20T12:00:00Z)"
    assert act.reason == "bad [data]"
    again = CliRunner().invoke(app, words)
    assert isinstance(again.exception, UserError)
    assert "runs when asked" in str(again.exception)

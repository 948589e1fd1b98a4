"""Commands that only look, in a store where no round has run yet: they say so, and make nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from align.campaign import open_campaign
from align.config.file import load_campaign
from align.schedule.claims import Dues
from align.schedule.inbox.inbox import Inbox
from align.schedule.inbox.rows import stream_forms
from align.store.database.database import Database
from align.store.store import ledger_place, open_ledger
from launch.cli import app
from rollouts.errors import UserError
from tests.unit.campaigns import campaign, raw_campaign, rounds

NIGHTLY = {"name": "nightly", "every": "0 3 * * *"}
ASKED = {
    "name": "taste",
    "when": {"new_pairs": 20},
    "algorithm": {"name": "dpo", "pairs": "file"},
    "data": {"source": "inbox://taste", "heldout": 0.5},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "campaign.yaml"
    raw = raw_campaign(tmp_path, rounds=[*rounds(NIGHTLY), {**ASKED, "steps": 2}])
    path.write_text(json.dumps({**raw, "ledger": f"sqlite:///{tmp_path / 'elsewhere.db'}"}))
    return path


@pytest.mark.parametrize("words", [["schedule", "next"], ["plan"], ["gate", "plan"]])
def test_looking_makes_no_ledger(file: Path, words: list[str]) -> None:
    run = CliRunner().invoke(app, [*words, str(file)], catch_exceptions=False)
    assert run.exit_code == 0
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("words", [["status"], ["report"], ["rounds", "list"]])
@pytest.mark.parametrize("before", ["nothing", "feedback", "a claim"])
def test_there_is_nothing_to_show_yet(file: Path, words: list[str], before: str) -> None:
    config = load_campaign(file).config
    if before == "feedback":
        pair = {"prompt": "rev _ 1 2 =", "chosen": "2 1", "rejected": "1 2"}
        form = stream_forms(config)["taste"]
        Inbox(open_ledger(config).database).add("taste", [form.read(pair, "test")])
    elif before == "a claim":
        assert Dues(open_ledger(config).database, config).claim_now(
            "nightly", datetime(2026, 1, 1, tzinfo=UTC)
        )
    run = CliRunner().invoke(app, [*words, str(file)])
    assert isinstance(run.exception, UserError)
    assert "there is no campaign in this store yet" in str(run.exception)
    assert (file.parent / "elsewhere.db").exists() == (before != "nothing")


def test_the_place_of_a_ledger_shows_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "postgresql://keel:secret@db/keel?sslpassword=hidden"
    monkeypatch.setenv("KEEL_LEDGER", url)
    place = ledger_place(campaign(tmp_path, ledger="env:KEEL_LEDGER"))
    assert "db/keel" in place
    assert "secret" not in place and "hidden" not in place
    assert ledger_place(campaign(tmp_path)) == str(tmp_path / "store" / "ledger.db")


def test_a_campaign_opens_its_ledger_once_and_to_read_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    config, open_database = campaign(tmp_path), Database.__init__

    def counted(self: Database, url: str) -> None:
        opened.append(url)
        open_database(self, url)

    monkeypatch.setattr(Database, "__init__", counted)
    for state, times in (("fresh", 1), ("begun", 2)):
        opened.clear()
        with open_campaign(config, lambda _: None) as running:
            running.claim.confirm_base()
        assert opened.count(config.ledger_url) == times, state

"""`keel schedule` without a round: what it shows, what it leaves alone, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from launch.cli import app
from launch.commands.schedule import waiting_lines
from rollouts.errors import UserError
from tests.unit.campaigns import campaign, raw_campaign, rounds

NIGHTLY: dict[str, Any] = {"name": "nightly", "every": "0 3 1 1 *", "timezone": "Asia/Tokyo"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "campaign.yaml"
    path.write_text(json.dumps(raw_campaign(tmp_path, rounds=rounds(NIGHTLY))))
    return path


def test_next_shows_and_makes_nothing(file: Path) -> None:
    shown = CliRunner().invoke(app, ["schedule", "next", str(file)])
    assert shown.exit_code == 0
    # Three o'clock in Tokyo is the evening before in UTC.
    assert shown.stdout.startswith("not yet  nightly: the next tick is ")
    first, remembered, alpha = shown.stdout.splitlines()
    assert first.endswith("-12-31 18:00 UTC")
    assert "on the newest 7 and on 3 of the older ones" in remembered
    assert alpha == "alpha 0.05 over any 10 decisions in a row: 0.005 each, without end"
    told = json.loads(CliRunner().invoke(app, ["schedule", "next", str(file), "--json"]).output)
    assert told["due"] == []
    assert told["waits"][0]["next"].endswith("-12-31T18:00:00Z")
    assert not (file.parent / "store").exists()


def test_tick_ends_with_4_when_nothing_is_due(file: Path) -> None:
    for _ in range(2):
        ended = CliRunner().invoke(app, ["schedule", "tick", str(file)])
        assert ended.exit_code == 4
        assert "not yet  nightly" in ended.output
    assert not (file.parent / "store" / "snapshots").exists()


def test_a_store_in_which_rounds_only_wait_has_nothing_to_show(file: Path) -> None:
    assert CliRunner().invoke(app, ["schedule", "tick", str(file)]).exit_code == 4
    assert (file.parent / "store" / "ledger.db").exists()
    for words in (["status"], ["rounds", "list"], ["gate", "baseline"], ["serve"]):
        ended = CliRunner().invoke(app, [*words, str(file)])
        assert isinstance(ended.exception, UserError), words
        assert "there is no campaign in this store yet" in str(ended.exception)
    for words in (["plan"], ["gate", "plan"]):
        assert CliRunner().invoke(app, [*words, str(file)]).exit_code == 0, words


def test_run_now_knows_the_schedules(file: Path) -> None:
    ended = CliRunner().invoke(app, ["schedule", "run-now", str(file), "nigthly"])
    assert isinstance(ended.exception, UserError)
    assert "did you mean 'nightly'?" in str(ended.exception)


def test_a_deadline_is_a_duration(file: Path) -> None:
    ended = CliRunner().invoke(app, ["schedule", "run", str(file), "--deadline", "soon"])
    assert isinstance(ended.exception, UserError)
    assert "'soon' is no duration" in str(ended.exception)


def test_a_plain_run_says_what_it_leaves(tmp_path: Path) -> None:
    manual = {"name": "special", "manual": True}
    config = campaign(tmp_path, rounds=rounds({}, manual))
    assert waiting_lines(config) == [
        "special is scheduled and not due: runs when asked: keel schedule run-now CAMPAIGN special"
    ]
    assert waiting_lines(campaign(tmp_path)) == []

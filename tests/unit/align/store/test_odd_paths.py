"""Stores in folders whose names mean something in a URL: they are folders all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.campaign import run_campaign
from align.config.store import StoreSettings, cut_path, sqlite_url
from align.gate.evidence import stored_evidence
from align.report.forecast.forecast import forecast
from align.store.ledger.ledger import Ledger
from tests.unit.campaigns import Starter, Watcher, campaign

NAMES = ["a?b", "50%25 c", "d#e", "f g", "ü 語", "h&i=j;k", "l:m@n", "[o]*"]


@pytest.mark.parametrize("name", NAMES)
def test_a_ledger_lies_where_the_store_says(tmp_path: Path, name: str) -> None:
    config = StoreSettings(name="odd", store=str(tmp_path / name / "store"))
    ledger = Ledger(config.ledger_url)
    ledger.open_campaign("odd", {"a": 1}, "hash")
    assert (tmp_path / name / "store" / "ledger.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert Ledger(config.ledger_url).closed() == frozenset()


def test_a_campaign_runs_and_is_forecast_in_such_a_folder(tmp_path: Path) -> None:
    config = campaign(tmp_path / "".join(NAMES).replace("/", ""))
    forecast(config)
    run_campaign(config, start_engine=Starter(), observer=Watcher())
    assert [record.state for record in stored_evidence(config).ledger.rounds()].count(
        "planned"
    ) == 0
    assert {round.state for round in forecast(config).rounds} <= {"accepted", "rejected"}


@pytest.mark.parametrize(
    ("url", "lost"),
    [
        ("sqlite:////a/b.db", None),
        ("sqlite:////a%3Fb/c.db", None),
        ("sqlite:////a/b.db?timeout=3", None),
        ("sqlite:////a?b/c.db", "?b/c.db"),
        ("sqlite:////a?b=1/c.db", "?b=1/c.db"),
        ("postgresql://u@h/d?options=x", None),
    ],
)
def test_a_path_that_a_url_would_cut_is_noticed(url: str, lost: str | None) -> None:
    assert cut_path(url) == lost


def test_the_url_of_a_plain_path_is_as_it_always_was() -> None:
    assert sqlite_url(Path("runs/x/ledger.db")) == "sqlite:///runs/x/ledger.db"
    assert sqlite_url(Path("/s/ledger.db")) == "sqlite:////s/ledger.db"

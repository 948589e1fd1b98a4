"""Stores as earlier versions wrote them: each opens, is shown and verified, and goes on with a round.

`tests/unit/data/stores` has what four versions left of one campaign: the ledger as SQL, results, prompts
and metrics, byte for byte. The base is the shipped one; the candidate's weights are left out, since its
round was rejected.

    01-spine        snapshots, rounds, evaluations and aliases
    02-inbox        rounds that fall due, feedback, the baseline's log; rollouts as tables
    03-overlap      bases that are compared with their folder; adapters served merged
    04-amendments   amendments, drops and code on record; no hashes of files yet
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from shutil import copyfile, copytree

import pytest

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.data.demo import BASE_MODEL
from align.gate.evidence import stored_evidence
from align.report.html import render
from align.report.status import status_of
from align.upkeep.verify import verify
from tests.unit.campaigns import ENFORCE, Starter, Watcher, raw_campaign, rounds

STORES = Path(__file__).parents[2] / "data" / "stores"
LAYOUTS = sorted(path.name for path in STORES.iterdir())


def old_store(folder: Path, layout: str) -> Path:
    """Build a store of an earlier version; return its folder."""
    store = folder / "store"
    copytree(STORES / layout, store)
    with closing(sqlite3.connect(store / "ledger.db")) as ledger:
        ledger.executescript((store / "ledger.sql").read_text())
        (base,) = ledger.execute("SELECT id, manifest FROM snapshots WHERE parent IS NULL")
    (store / "ledger.sql").unlink()
    snapshot = store / "snapshots" / base[0]
    snapshot.mkdir(parents=True)
    for entry in json.loads(base[1])["files"]:
        copyfile(BASE_MODEL / entry["path"], snapshot / entry["path"])
    (snapshot / "manifest.json").write_text(base[1])
    return store


def config_of(folder: Path, *more: str) -> CampaignConfig:
    specs = rounds({"name": "first"}, *({"name": name} for name in more))
    return CampaignConfig.model_validate(raw_campaign(folder, rounds=specs, gate=ENFORCE))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_store_of_an_earlier_version_goes_on(layout: str, tmp_path: Path) -> None:
    old_store(tmp_path, layout)
    evidence = stored_evidence(config_of(tmp_path))
    (first,) = evidence.committed()
    assert (first.name, first.state) == ("first", "rejected")
    again, recorded = evidence.recompute("first")
    assert again.decides_as(recorded) and not recorded.accepted
    assert status_of(evidence).rounds[0].entry.name == "first"
    assert "first" in render(evidence)
    # Only the weights that the fixture leaves out are missed.
    result = verify(evidence, lambda name, total: None)
    assert [fault.path for fault in result.faults] == [f"snapshots/{first.candidate}"]
    assert result.unhashed == 4
    watcher = Watcher()
    config = config_of(tmp_path, "second")
    after = run_campaign(config, start_engine=Starter(), observer=watcher)
    assert [record.name for record in after.committed()] == ["first", "second"]
    result = verify(after, lambda name, total: None)
    assert [fault.path for fault in result.faults] == [f"snapshots/{first.candidate}"]
    assert result.unhashed == 0
    assert after.recompute("second")[0] == after.recompute("second")[1]

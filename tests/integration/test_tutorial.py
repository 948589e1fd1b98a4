"""The first page of the guide for real: its campaign with fewer steps, under Ray and vLLM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from align.config.file import load_campaign
from align.gate.evidence import stored_evidence
from tests.patience import patient
from tests.unit.commands import blocks
from tests.unit.decided import keel as keel_here

KEEL = (sys.executable, "-c", "from launch.cli import main; main()")
PAGE = Path(__file__).parents[2] / "docs" / "tutorial" / "first-round.md"


def keel(folder: Path, *words: str) -> str:
    environ = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [*KEEL, *words],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=patient(240),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_first_campaign_of_the_tutorial_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = [block for block in blocks(PAGE.read_text()) if block.title == "first.yaml"]
    raw = yaml.safe_load(block.text)
    raw["rollouts"] = {"max_num_seqs": 64, "kv_cache_mb": 64}
    for spec in raw["rounds"]:
        spec["steps"] = 12
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(raw))

    shown = keel(tmp_path, "run", "first.yaml")

    for name in ("base", "reverse", "sort", "general"):
        assert name in shown
    evidence = stored_evidence(
        load_campaign(tmp_path / "first.yaml", [f"store={tmp_path}/runs/first"]).config
    )
    states = {record.name: record.state for record in evidence.ledger.rounds()}
    assert states["reverse"] == "accepted"
    assert states["sort"] in ("accepted", "rejected")
    monkeypatch.chdir(tmp_path)
    code, again, error = keel_here("run", "first.yaml")
    assert code == 0, error
    assert "starting Ray" not in again
    assert "reverse" in again

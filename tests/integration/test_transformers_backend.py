"""A campaign on the transformers backend: `keel run` with a model that vLLM refuses on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from align.config.file import load_campaign
from align.gate.evidence import stored_evidence
from tests.patience import patient
from tests.unit.model_kinds import save_folder

ROOT = Path(__file__).parents[2]
KEEL = (sys.executable, "-c", "from launch.cli import main; main()")
TOLERANCE = 1e-4


def keel(*arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("RAY_ADDRESS")}
    return subprocess.run(
        [*KEEL, *arguments],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=patient(240.0),
        check=False,
    )


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("campaign")
    model = save_folder(folder / "model", "mistral")
    rounds: list[dict[str, Any]] = [
        {"name": "first", "prompts": "demo://rev?n=200", "steps": 3},
        {
            "name": "second",
            "prompts": "demo://inc?n=200",
            "steps": 4,
            "sampling": {"max_staleness": 1, "in_flight": True},
        },
    ]
    content = {
        "name": "refused",
        "policy": {"model": str(model), "lora": {"rank": 4}},
        "store": str(folder / "store"),
        "rollouts": {"backend": "transformers", "max_num_seqs": 16, "kv_cache_mb": 16},
        "defaults": {
            "sampling": {"group_size": 4, "prompts_per_step": 4, "max_tokens": 6},
            "suite": {"items": 20, "temperature": 1.0},
        },
        "rounds": [{**spec, "rewards": ["exact_match"]} for spec in rounds],
        "gate": {"mode": "observe"},
    }
    path = folder / "campaign.yaml"
    path.write_text(json.dumps(content))
    return path


def test_it_is_refused_by_vllm_and_runs_on_transformers(campaign: Path) -> None:
    refused = keel("config", "check", str(campaign), "--set", "rollouts.backend=vllm")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "head size 16" in refused.stderr
    assert "rollouts.backend: transformers" in " ".join(refused.stderr.split())
    run = keel("run", str(campaign))
    assert run.returncode == 0, run.stdout + run.stderr
    config = load_campaign(campaign).config
    states = {r.name: r.state for r in stored_evidence(config).ledger.rounds()}
    assert states == {"first": "accepted", "second": "accepted"}
    rows = [
        json.loads(line)
        for file in sorted(config.folder.glob("rounds/00-first/*/metrics.jsonl"))
        for line in file.read_text().splitlines()
    ]
    gaps = [row["parity/max_abs_diff"] for row in rows if "parity/max_abs_diff" in row]
    assert gaps
    assert 0.0 < max(gaps) <= TOLERANCE

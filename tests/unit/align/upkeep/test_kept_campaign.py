"""Real rounds over packed snapshots: anchors, replay, gate and export read them, and nothing differs."""

from __future__ import annotations

from pathlib import Path

from align.campaign import run_campaign
from align.gate.evidence import Evidence
from align.report.export.export import export
from align.upkeep.verify import verify
from tests.unit.campaigns import Starter, Watcher, campaign, rounds

TASKS = ("rev", "inc", "sort", "rotl")


def ran(folder: Path, **changes: object) -> Evidence:
    specs = rounds(*({"name": t, "prompts": f"demo://{t}?n=60"} for t in TASKS))
    config = campaign(folder, rounds=specs, **changes)
    return run_campaign(config, start_engine=Starter(), observer=Watcher())


def test_a_campaign_over_differences_makes_the_same_snapshots(tmp_path: Path) -> None:
    whole = ran(tmp_path / "whole")
    kept = ran(tmp_path / "kept", keep={"rejected": 0, "snapshots": "delta"})
    accepted = kept.accepted("policy")
    assert accepted == whole.accepted("policy") and len(accepted) == len(TASKS)
    snapshots = kept.store.snapshots
    assert [name for name, id in accepted.items() if snapshots.is_packed(id)] == ["rev", "inc"]
    assert not snapshots.staged() and not kept.store.paths.snapshot(accepted["rev"]).exists()
    for name in TASKS:
        assert kept.recompute(name)[0] == whole.recompute(name)[0]
    export(kept, "rev", tmp_path / "exported", merge=False, force=False)
    assert (tmp_path / "exported" / "model.safetensors").read_bytes() == (
        whole.store.paths.snapshot(accepted["rev"]) / "model.safetensors"
    ).read_bytes()
    assert verify(kept, lambda name, total: None).whole

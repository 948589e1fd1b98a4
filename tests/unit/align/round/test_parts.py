"""What a round writes down through the parts of a campaign, for adapters and for critics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from align.campaign import run_campaign
from align.store.snapshots.snapshots import SnapshotStore
from tests.unit.align.round.test_round import Ran
from tests.unit.campaigns import Starter, Watcher, campaign

ADAPTER = {"rank": 4, "alpha": 8, "serve": "merged"}


def run(folder: Path, **changes: Any) -> Ran:
    starter, watcher = Starter(), Watcher()
    config = campaign(folder, **changes)
    evidence = run_campaign(config, start_engine=starter, observer=watcher)
    return Ran(config=config, evidence=evidence, starter=starter, watcher=watcher)


@pytest.mark.parametrize(
    ("chosen", "kind"),
    [({"dora": True}, "adapter"), ({"merge": True, "rslora": True}, "model")],
    ids=["served merged", "merged for good"],
)
def test_a_campaign_of_merged_adapters(tmp_path: Path, chosen: dict[str, Any], kind: str) -> None:
    """Engines that take full weights only, whatever the snapshots are: parity is checked in every step
    and again before a snapshot is published."""
    ran = run(tmp_path, policy={"model": "demo://digits", "lora": ADAPTER | chosen})
    store = SnapshotStore(ran.config.folder)
    assert store.open(ran.evidence.base).kind == "model"
    for record in ran.evidence.ledger.rounds():
        assert record.state == "accepted"
        assert store.open(record.candidate or "").kind == kind
    assert len({ran.evidence.base, *ran.candidates.values()}) == 3
    for index, name in enumerate(ran.candidates):
        for step in ran.metrics(index, name):
            assert step["parity/max_abs_diff"] < 1e-4
    assert all(step["kl/past/owner"] < 1e-2 for step in ran.metrics(1, "second"))
    matrix = ran.evidence.matrix()
    assert all(score is not None for row in matrix.rows for score in row.scores)


@pytest.mark.parametrize("model", ["shared", None], ids=["shared", "own"])
def test_the_critic_of_a_round_is_kept(tmp_path: Path, model: str | None) -> None:
    ppo = {"algorithm": {"name": "ppo", "critic": {"model": model}}, "suite": {"items": 30}}
    spec = {"prompts": "demo://rev?n=60", "rewards": ["exact_match"], "steps": 2}
    ran = run(tmp_path, rounds=[{**spec, **ppo, "name": "first"}, {**spec, "name": "second"}])
    critics = sorted(ran.config.folder.rglob("critic.safetensors"))
    assert critics == [ran.config.folder / "rounds/00-first/attempt-1/critic/critic.safetensors"]
    tensors = load_file(critics[0])
    assert tensors["head.weight"].abs().max() > 0
    assert any(name.startswith("body.") for name in tensors) == (model is None)

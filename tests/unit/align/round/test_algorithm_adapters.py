"""Every algorithm learns an adapter: engines serve it over their own base, and the base stays what it is.

`publish` compares engine and learner after the last step, so a round that ends says that the adapter over
the engine's base computes what the learner holds: had the learner's base moved, they would disagree.
"""

from __future__ import annotations

import math
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.data.demo import BASE_MODEL
from align.store.snapshots.snapshots import SnapshotStore
from rollouts.engines.protocol import RolloutEngine
from tests.unit.adapter_engine import AdapterEngine
from tests.unit.align.round.test_algorithm_rounds import SPECS, files, spec_of
from tests.unit.align.round.test_round import Ran
from tests.unit.campaigns import Starter, Watcher, campaign, rounds

__all__ = ["files"]

RANK, ALPHA = 4, 8.0


class Adapters(Starter):
    """Starts engines that serve adapters."""

    def __call__(self, config: CampaignConfig, model: Path, context: int) -> RolloutEngine:
        self.engines.append(AdapterEngine(model))
        return self.engines[-1]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with other weights: a model that the policy does not start as."""
    folder = tmp_path_factory.mktemp("models") / "teacher"
    copytree(BASE_MODEL, folder)
    torch.manual_seed(0)
    noisy = {name: t + 0.02 * torch.randn_like(t) for name, t in weights_of(folder).items()}
    save(noisy, folder)
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {k: t for file in folder.glob("*.safetensors") for k, t in load_file(file).items()}


def save(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def ran_with(folder: Path, spec: dict[str, Any], starter: Starter, **lora: Any) -> Ran:
    """One short round of a policy that learns adapters, measured on next to nothing."""
    policy = {
        "model": "demo://digits",
        "lora": {"rank": RANK, "alpha": ALPHA, "serve": "adapter", **lora},
    }
    defaults = {
        "sampling": {"group_size": 4, "prompts_per_step": 5, "max_tokens": 6},
        "optimizer": {"lr": 3e-4},
        "suite": {"items": 8, "temperature": 1.0},
    }
    config = campaign(folder, policy=policy, defaults=defaults, suites=[], rounds=rounds(spec))
    watcher = Watcher()
    evidence = run_campaign(config, start_engine=starter, observer=watcher)
    return Ran(config=config, evidence=evidence, starter=starter, watcher=watcher)


def assert_base_untouched(ran: Ran) -> None:
    """As the store holds it, against the model that it was taken from."""
    base = SnapshotStore(ran.config.folder).open(ran.evidence.base)
    published, original = weights_of(base.path), weights_of(BASE_MODEL)
    assert published.keys() == original.keys()
    assert all(torch.equal(published[name], t) for name, t in original.items())


@pytest.mark.parametrize("name", SPECS)
def test_every_algorithm_learns_an_adapter(
    name: str, files: Path, teacher: Path, tmp_path: Path
) -> None:
    spec = {**spec_of(name, files), "steps": 1}
    if name.startswith("distill"):
        # From the base a policy that starts as the base learns nothing.
        spec["algorithm"] = {**spec["algorithm"], "teacher": f"model:{teacher}"}
    ran = ran_with(tmp_path, spec, Adapters())
    (record,) = ran.evidence.ledger.rounds()
    assert record.state == "accepted"
    (step,) = ran.metrics(0, "round0")
    assert all(math.isfinite(value) for value in step.values())
    assert step["parity/max_abs_diff"] < 1e-4
    snapshot = SnapshotStore(ran.config.folder).open(record.candidate or "")
    assert snapshot.kind == "adapter"
    tensors = weights_of(snapshot.path)
    # A layer's A has no gradient while its B is zero; every B has moved.
    moved = {name: tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name}
    assert len(moved) == len(tensors) / 2 > 0
    assert all(moved.values())
    assert_base_untouched(ran)


@pytest.mark.parametrize("name", ["grpo", "dpo_file"])
def test_merged_serving_is_the_base_with_the_update_added(
    name: str, files: Path, tmp_path: Path
) -> None:
    ran = ran_with(tmp_path, {**spec_of(name, files), "steps": 1}, Starter(), serve="merged")
    (record,) = ran.evidence.ledger.rounds()
    snapshot = SnapshotStore(ran.config.folder).open(record.candidate or "")
    assert snapshot.kind == "adapter"
    adapter, base = weights_of(snapshot.path), weights_of(BASE_MODEL)
    (engine,) = ran.starter.engines
    held = engine._model.state_dict()
    layers = [n.removesuffix(".lora_A.weight") for n in adapter if n.endswith(".lora_A.weight")]
    changed = set()
    for layer in layers:
        weight = f"{layer.removeprefix('base_model.model.')}.weight"
        changed.add(weight)
        update = adapter[f"{layer}.lora_B.weight"] @ adapter[f"{layer}.lora_A.weight"]
        assert update.any()
        torch.testing.assert_close(held[weight], base[weight] + ALPHA / RANK * update)
    assert changed
    assert all(torch.equal(held[n], base[n]) for n in base.keys() - changed)
    assert_base_untouched(ran)


def test_a_reward_model_beside_adapters_learns_all_its_weights(files: Path, tmp_path: Path) -> None:
    """``lora`` is the policy's: a reward model begins at the base below it, and nothing moves there."""
    pairs = {"source": str(files / "pairs.jsonl"), "heldout": 0.3}
    spec = {"algorithm": "reward_model", "data": pairs, "prompts": None, "rewards": [], "steps": 1}
    ran = ran_with(tmp_path, spec, Adapters())
    (record,) = ran.evidence.ledger.rounds()
    snapshot = SnapshotStore(ran.config.folder).open(record.candidate or "")
    assert snapshot.kind == "reward"
    own, base = weights_of(snapshot.path), weights_of(BASE_MODEL)
    shared = base.keys() & own.keys()
    assert shared
    assert sum(not torch.equal(own[n], base[n]) for n in shared) > len(shared) / 2
    assert ran.evidence.ledger.alias("production") == ran.evidence.base
    assert_base_untouched(ran)

"""Adapters of every kind: what they add to the base, what engines and snapshots get of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from align.algorithms.rows import Batch
from align.config.campaign import (
    AnchorConfig,
    AnchorsConfig,
    LoraConfig,
    OptimizerConfig,
    PolicyConfig,
    RoundSettings,
)
from align.learner.learner import Learner
from align.learner.model.adapter import TRAINED, merged
from align.learner.model.policy import Policy
from align.learner.references import References
from align.retention.methods import RetentionMethods
from launch.cluster.engines import engine_spec
from rollouts.engines.backend import LINEAR_LAYERS
from rollouts.engines.stored_tensor import read_stored
from rollouts.errors import RunError
from tests.unit.campaigns import campaign
from tests.unit.tiny import row, save_model

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "both": {"dora": True, "rslora": True},
}
RANK, ALPHA = 4, 6.0
TOKENS_BT = torch.arange(2, 14).reshape(2, 6)
LAYER = "model.layers.1.mlp.up_proj"
ROWS = (row((1, 2, 3), (4, 5), 1.0), row((7,), (8, 9, 10), -1.0), row((3, 4), (5, 6), 0.5))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "base": save_model(root / "base", 0),
        "other": save_model(root / "other", 1),
        "untied": save_model(root / "untied", 2, tied=False),
    }


def lora(**chosen: Any) -> LoraConfig:
    return LoraConfig(**{"rank": RANK, "alpha": ALPHA, "serve": "merged", **chosen})


def make(folder: Path, config: LoraConfig | None) -> Policy:
    chosen = PolicyConfig(model="tiny", lora=config)
    return Policy(folder, chosen, device=torch.device("cpu"))


@torch.no_grad()
def disturb(policy: Policy, seed: int = 0) -> None:
    """Change everything that is trained."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=TOKENS_BT).logits
    return found


def plain(folder: Path, tensors: Any = None) -> Any:
    """The model of a folder, with other weights in place of its own."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if tensors is not None:
        missing, unexpected = model.load_state_dict(tensors, strict=False)
        assert not unexpected
        assert set(missing) <= set(model.all_tied_weights_keys)
    return model


def held(policy: Policy) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.model.named_parameters()}


# the update


@pytest.mark.parametrize("name", ["base", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_compute_what_the_adapter_does_and_leave_it_alone(
    models: dict[str, Path], tmp_path: Path, kind: str, name: str
) -> None:
    policy = make(models[name], lora(**KINDS[kind]))
    disturb(policy)
    before = held(policy)
    update = policy.weights("r/1", tmp_path)
    assert update.adapter is None and update.tensors is not None
    assert set(update.tensors) == set(dict(plain(models[name]).named_parameters()))
    found = logits(plain(models[name], read_stored(update.tensors)))
    torch.testing.assert_close(found, logits(policy.model), atol=2e-5, rtol=1e-5)
    assert (found - logits(plain(models[name]))).abs().max() > 0.1
    after = held(policy)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "scale"), [("lora", ALPHA / RANK), ("rslora", ALPHA / RANK**0.5)])
def test_the_scale_by_hand(models: dict[str, Path], kind: str, scale: float) -> None:
    policy = make(models["base"], lora(**KINDS[kind]))
    disturb(policy)
    layer = policy.model.get_base_model().get_submodule(LAYER)
    update = layer.lora_B[TRAINED].weight @ layer.lora_A[TRAINED].weight
    expected = layer.base_layer.weight + scale * update
    torch.testing.assert_close(merged(policy.model)[f"{LAYER}.weight"], expected.detach())


def test_dora_sets_the_length_of_every_row(models: dict[str, Path]) -> None:
    policy = make(models["base"], lora(dora=True))
    disturb(policy)
    layer = policy.model.get_base_model().get_submodule(LAYER)
    lengths = merged(policy.model)[f"{LAYER}.weight"].norm(dim=1)
    torch.testing.assert_close(lengths, layer.lora_magnitude_vector[TRAINED].weight.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_again_is_the_base_to_the_bit(models: dict[str, Path], kind: str) -> None:
    policy = make(models["base"], lora(**KINDS[kind]))
    base = plain(models["base"]).state_dict()
    for _ in range(2):
        assert all(torch.equal(base[name], tensor) for name, tensor in merged(policy.model).items())
        disturb(policy)
        policy.load(models["base"])


# snapshots and engines


@pytest.mark.parametrize("kind", KINDS)
def test_merged_serving_leaves_snapshots_adapters(
    models: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    policy = make(models["base"], lora(**KINDS[kind]))
    disturb(policy)
    trained = logits(policy.model)
    policy.save(tmp_path / "snapshot")
    assert {file.name for file in (tmp_path / "snapshot").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    policy.load(models["base"])
    assert not torch.allclose(logits(policy.model), trained, atol=0.1)
    policy.load(tmp_path / "snapshot")
    torch.testing.assert_close(logits(policy.model), trained)


def test_served_adapters_are_folders(models: dict[str, Path], tmp_path: Path) -> None:
    policy = make(models["base"], lora(serve="adapter"))
    update = policy.weights("00-first.1/2", tmp_path)
    assert update.tensors is None
    assert update.adapter == str(tmp_path / "00-first.1-2")
    assert (tmp_path / "00-first.1-2" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(("serve", "rank"), [("adapter", 4), ("merged", None)])
def test_engines_are_started_for_what_they_are_served(
    tmp_path: Path, serve: str, rank: int | None
) -> None:
    chosen = {"rank": RANK, "serve": serve, "targets": ["q_proj"]}
    config = campaign(tmp_path, policy={"model": "demo://digits", "lora": chosen})
    engine = engine_spec(config, tmp_path, 64)
    assert engine.lora_rank == rank
    assert engine.lora_targets == (("q_proj",) if rank else LINEAR_LAYERS)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"dora": True, "serve": "adapter"}, "vLLM takes no DoRA adapters; set serve to merged"),
        ({"merge": True, "serve": "adapter"}, "merge needs serve: merged"),
        ({"targets": ("q_proj", "lm_head")}, "targets has lm_head"),
        ({"targets": ("lm_head",), "serve": "merged"}, "targets has lm_head"),
    ],
)
def test_what_engines_cannot_take_is_refused_in_the_file(
    chosen: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        LoraConfig(**chosen)


# merged at the end of a round


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_merged_round_is_a_whole_model_under_the_next_rounds_adapter(
    models: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    policy = make(models["base"], lora(merge=True, **KINDS[kind]))
    disturb(policy)
    trained = logits(policy.model)
    policy.save(tmp_path / "first")
    torch.testing.assert_close(logits(plain(tmp_path / "first")), trained, atol=2e-5, rtol=1e-5)
    policy.load(tmp_path / "first")
    first = plain(tmp_path / "first").state_dict()
    assert all(torch.equal(first[name], tensor) for name, tensor in merged(policy.model).items())
    disturb(policy, 1)
    torch.testing.assert_close(
        logits(plain(models["base"], merged(policy.model))),
        logits(policy.model),
        atol=2e-5,
        rtol=1e-5,
    )
    policy.load(models["base"])
    torch.testing.assert_close(logits(policy.model), logits(plain(models["base"])))


def test_an_adapter_is_no_whole_model(models: dict[str, Path], tmp_path: Path) -> None:
    make(models["base"], lora()).save(tmp_path)
    policy = make(models["base"], lora(merge=True))
    before = held(policy)
    with pytest.raises(RunError, match="the weights do not fit the policy: missing"):
        policy.load(tmp_path)
    assert all(torch.equal(before[key], tensor) for key, tensor in held(policy).items())


def test_anchors_of_merged_rounds_are_whole_models(models: dict[str, Path], tmp_path: Path) -> None:
    """The resident base is the parent's: neither the start nor another round may be read from it."""
    folders = dict(models)
    learner = Learner(
        models["base"],
        PolicyConfig(model="tiny", lora=lora(merge=True)),
        folder_of=lambda snapshot: folders[snapshot],
        scratch=tmp_path,
        tolerance=1e9,
    )
    anchors = AnchorsConfig(new=(AnchorConfig(to="base", beta=0.1),), past=(), general=())
    spec = RoundSettings(anchors=anchors, optimizer=OptimizerConfig(lr=1e-2))
    training = learner.begin(
        spec,
        References(base="base", parent="base"),
        num_steps=3,
        seed=0,
        penalties=RetentionMethods(),
    )
    for _ in range(3):
        training.update(Batch(rows=ROWS))
    drift = training.divergence(list(ROWS), "base")
    assert drift > 1e-3
    learner.save(tmp_path / "first")
    folders["first"] = tmp_path / "first"
    references = References(base="base", parent="first", rounds={"first": "first"})
    training = learner.begin(spec, references, num_steps=3, seed=0, penalties=RetentionMethods())
    assert training.divergence(list(ROWS), "first") == pytest.approx(0.0, abs=1e-6)
    assert training.divergence(list(ROWS), "base") == pytest.approx(drift, rel=1e-3)
    metrics = training.update(Batch(rows=ROWS))
    assert metrics["kl/new/base"] == pytest.approx(drift, rel=1e-3)
    assert all("lora" in name for name in learner.policy.named_parameters())

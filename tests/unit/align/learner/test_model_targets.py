"""Adapters find a model's linear layers, whatever they are called, and say how much of it they change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from align.config.campaign import LoraConfig, PolicyConfig
from align.learner.folder.checks import check_base
from align.learner.model.policy import Policy
from align.learner.model.targets import adaptation_of, served_targets
from rollouts.engines.stored_tensor import read_stored
from rollouts.errors import UserError
from tests.unit.model_kinds import save_folder, save_kind

LINEAR = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "qwen3_moe": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "gpt2": ("c_attn", "c_fc", "c_proj"),
    "gpt_neox": ("dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"),
    "phi3": ("down_proj", "gate_up_proj", "o_proj", "qkv_proj"),
    "opt": ("fc1", "fc2", "k_proj", "out_proj", "q_proj", "v_proj"),
}
SIZES = {
    "llama": (14, 4 * 2 * (4 * 128 + 2 * 96 + 128)),
    "gpt2": (8, 4 * 2 * (64 + 192 + 64 + 64 + 64 + 256 + 256 + 64)),
}
"""Layers, and parameters at rank 4: rank times inputs plus outputs of every layer, two decoder layers."""


def policy_of(folder: Path, **lora: Any) -> PolicyConfig:
    return PolicyConfig(model=str(folder), lora=LoraConfig(rank=4, alpha=8, serve="merged", **lora))


@pytest.mark.parametrize("kind", LINEAR)
def test_all_linear_layers_are_adapted(tmp_path: Path, kind: str) -> None:
    """Also those that hold inputs by outputs: the merged weights differ in exactly these layers, and
    compute what the adapter does."""
    folder = save_kind(tmp_path / "model", kind)
    config = policy_of(folder)
    adapted = adaptation_of(folder, config)
    assert adapted is not None
    assert adapted.targets == LINEAR[kind] == served_targets(folder, config)
    policy = Policy(folder, config, device=torch.device("cpu"))
    assert adapted.trained == sum(p.numel() for p in policy.parameters())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    sent = policy.weights("v", tmp_path).tensors
    assert sent is not None
    sent = read_stored(sent)
    before = load_file(folder / "model.safetensors")
    assert sent.keys() == before.keys()
    changed = {name for name, tensor in before.items() if not torch.equal(sent[name], tensor)}
    assert {name.split(".")[-2] for name in changed} == set(LINEAR[kind])
    assert len(changed) == adapted.layers
    merged = policy_of(folder, merge=True)
    whole = Policy(folder, merged, device=torch.device("cpu"))
    whole._load_base(in_memory(whole, sent))
    tokens = torch.arange(3, 9)[None]
    with torch.no_grad():
        expected = policy.model(input_ids=tokens, use_cache=False).logits
        torch.testing.assert_close(
            whole.model(input_ids=tokens, use_cache=False).logits, expected, atol=1e-4, rtol=1e-4
        )


def in_memory(policy: Policy, tensors: Any) -> Any:
    from align.learner.model.adapter import causal_of
    from align.learner.model.loading import convert_weights

    return convert_weights(causal_of(policy.model), tensors.items(), "merged")


@pytest.mark.parametrize("kind", SIZES)
def test_sizes_by_hand(tmp_path: Path, kind: str) -> None:
    folder = save_kind(tmp_path / "model", kind)
    adapted = adaptation_of(folder, policy_of(folder))
    assert adapted is not None
    assert (adapted.layers, adapted.trained) == SIZES[kind]
    share = 100 * adapted.trained / adapted.parameters
    assert f"{adapted.trained:,} parameters, {share:.2g}% of the model's" in str(adapted)


@pytest.mark.parametrize(("kind", "targets", "message"), [
    ("gpt2", ["q_proj"], "no linear layer 'q_proj'"),
    ("gpt2", ["c_attn", "mlp"], "no linear layer 'mlp'"),
    ("llama", ["query_key_value"], "choose among down_proj, gate_proj, k_proj"),
])  # fmt: skip
def test_layers_that_are_not_there(
    tmp_path: Path, kind: str, targets: list[str], message: str
) -> None:
    folder = save_folder(tmp_path / "model", kind)
    with pytest.raises(UserError, match=message) as error:
        check_base(folder, policy_of(folder, targets=targets), "cpu")
    assert error.value.where == "policy.lora.targets"


@pytest.mark.parametrize(("kind", "taken"), [
    ("llama", True), ("phi3", True), ("gpt_neox", True), ("gpt2", False), ("bloom", False),
])  # fmt: skip
def test_engines_that_serve_no_adapters(tmp_path: Path, kind: str, taken: bool) -> None:
    folder = save_folder(tmp_path / "model", kind)
    check_base(folder, policy_of(folder), "cpu")
    config = PolicyConfig(model=str(folder), lora=LoraConfig(serve="adapter"))
    if taken:
        check_base(folder, config, "cpu")
        return
    with pytest.raises(UserError, match="vLLM serves no adapters of"):
        check_base(folder, config, "cpu")

"""Weights of many architectures pass from files to the learner, to engines and back unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.config.campaign import PolicyConfig
from align.learner.model.policy import Policy
from tests.unit.model_kinds import save_kind

CPU = torch.device("cpu")
TRAINED = [
    "llama", "qwen3_moe", "qwen2_moe", "mixtral", "gpt_neox", "gpt2", "gpt_bigcode", "gptj",
    "phi3", "phi", "opt", "bloom", "falcon", "stablelm", "gemma3_text",
]  # fmt: skip


def stored(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder, by its name in the file."""
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def logits(folder: Path) -> Tensor:
    """Compute the logits of a folder with transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 9)[None], use_cache=False).logits


@pytest.mark.parametrize("kind", TRAINED)
def test_a_snapshot_travels_through_the_policy(tmp_path: Path, kind: str) -> None:
    """The base is loaded, then another snapshot: engines get that one under the names of its file, and
    what is written computes the same."""
    base = save_kind(tmp_path / "base", kind, seed=0)
    other = save_kind(tmp_path / "other", kind, seed=1)
    policy = Policy(base, PolicyConfig(model="tiny"), device=CPU)
    assert not torch.allclose(logits(base), logits(other), atol=1e-3)
    policy.load(other)
    sent = policy.weights("v1", tmp_path).tensors
    assert sent is not None
    expected = stored(other)
    assert sent.keys() == expected.keys()
    assert all(torch.equal(sent[name], tensor) for name, tensor in expected.items())
    policy.save(tmp_path / "written")
    torch.testing.assert_close(logits(tmp_path / "written"), logits(other))
    policy.load(base)
    policy.save(tmp_path / "again")
    torch.testing.assert_close(logits(tmp_path / "again"), logits(base))


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "gpt_neox", "gpt2"])
def test_halfway_between_snapshots(tmp_path: Path, kind: str) -> None:
    base = save_kind(tmp_path / "base", kind, seed=0)
    other = save_kind(tmp_path / "other", kind, seed=1)
    policy = Policy(base, PolicyConfig(model="tiny"), device=CPU)
    policy.blend(base, other, 0.25)
    sent, start, end = policy.weights("v1", tmp_path).tensors, stored(base), stored(other)
    assert sent is not None
    for name, tensor in start.items():
        torch.testing.assert_close(sent[name], torch.lerp(tensor, end[name], 0.25))


def test_names_of_older_files(tmp_path: Path) -> None:
    """GPT-2 as the hub has it: no prefix, and a causal mask as a buffer in every layer."""
    folder = save_kind(tmp_path / "model", "gpt2")
    expected = logits(folder)
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in stored(folder).items()}
    tensors["h.0.attn.bias"] = torch.ones(64, 64).tril()[None, None]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    policy = Policy(folder, PolicyConfig(model="tiny"), device=CPU)
    policy.load(folder)
    policy.save(tmp_path / "written")
    torch.testing.assert_close(logits(tmp_path / "written"), expected)
    with safe_open(tmp_path / "written" / "model.safetensors", "pt") as file:
        assert not any(".attn.bias" in name for name in file.keys())  # noqa: SIM118

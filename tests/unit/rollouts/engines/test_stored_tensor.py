"""Tensors read where they are needed: what they come to, what may be skipped, what files allow it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from align.config.campaign import LoraConfig, PolicyConfig
from align.learner.model.adapter import merged
from align.learner.model.policy import Policy
from rollouts.engines.stored_tensor import (
    LowRankUpdate,
    StoredTensor,
    StoredTensorReader,
    read_stored,
)
from rollouts.engines.transfer.host import from_host, to_host
from rollouts.engines.transfer.reload import remembered, skippable
from tests.unit.model_kinds import save_kind

CPU = torch.device("cpu")


def update(left: list[list[float]], right: list[list[float]], scale: float) -> LowRankUpdate:
    return LowRankUpdate(
        left=np.array(left, np.float32), right=np.array(right, np.float32), scale=scale
    )


def make(base: Path, **chosen: Any) -> Policy:
    lora = LoraConfig(rank=2, serve="merged", **chosen)
    return Policy(base, PolicyConfig(model="tiny", lora=lora), device=CPU)


def disturb(policy: Policy) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_by_hand(tmp_path: Path, dtype: torch.dtype) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.tensor([[1, 2], [3, 4]], dtype=dtype)}, file)
    added = update([[1], [2]], [[10, 20]], 0.5)
    tensor = StoredTensor(file=str(file), name="a", update=added)
    read = StoredTensorReader().read(tensor)
    assert read.tolist() == [[6, 12], [13, 24]]
    assert read.dtype == torch.float32
    # The file stays what it is.
    assert StoredTensorReader().read(StoredTensor(file=str(file), name="a")).tolist() == [
        [1, 2],
        [3, 4],
    ]


def test_it_travels(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(2, 2), "b": torch.zeros(3)}, file)
    tensors: dict[str, Any] = {
        "a": StoredTensor(file=str(file), name="a", update=update([[1], [0]], [[1, 1]], 1.0)),
        "b": torch.arange(3.0),
    }
    arrived = dict(from_host(copy.deepcopy(to_host(tensors))))
    assert arrived["a"].tolist() == [[2, 2], [1, 1]]
    assert arrived["b"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("file", "name"), [("absent.safetensors", "a"), ("model.safetensors", "z")]
)
def test_what_is_not_there_is_named(tmp_path: Path, file: str, name: str) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match=rf"'{name}' cannot be read from .*{file}"):
        read_stored({"x": StoredTensor(file=str(tmp_path / file), name=name)})


# What an engine may leave alone

LAYERS = (
    "model.embed_tokens.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.q_proj.bias",
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.norm.weight",
)


def stored(file: str = "one", *, changed: tuple[str, ...] = ()) -> dict[str, StoredTensor]:
    added = update([[1]], [[1]], 1.0)
    return {
        name: StoredTensor(file=file, name=name, update=added if name in changed else None)
        for name in LAYERS
    }


@pytest.mark.parametrize(
    ("changed", "reloaded"),
    [
        ((), set()),
        (("model.layers.0.mlp.up_proj.weight",), {"model.layers.0.mlp.up_proj.weight"}),
        # vLLM fuses siblings: of a changed one all are loaded again, biases too.
        (
            ("model.layers.0.self_attn.q_proj.weight",),
            {name for name in LAYERS if ".self_attn." in name},
        ),
    ],
)
def test_only_blocks_without_a_change_are_skipped(
    changed: tuple[str, ...], reloaded: set[str]
) -> None:
    assert skippable(stored(changed=changed), stored()) == set(LAYERS) - reloaded


def test_nothing_is_skipped_that_an_engine_does_not_hold() -> None:
    assert skippable(stored(), {}) == set()
    assert skippable(stored("two"), stored("one")) == set()
    fewer = {name: tensor for name, tensor in stored().items() if name != LAYERS[0]}
    assert skippable(fewer, stored()) == set()
    plain = {name: np.zeros(1) for name in LAYERS}
    assert skippable(plain, plain) == set()


def test_an_engine_remembers_no_arrays() -> None:
    """They would pin the update that they came with."""
    changed = LAYERS[2]
    held = remembered({**stored(changed=(changed,)), LAYERS[0]: np.zeros(1)})
    assert held.keys() == set(LAYERS)
    assert held[changed] is None and held[LAYERS[0]] is None
    again = stored(changed=(changed,))
    assert skippable(again, remembered(again)) == {n for n in LAYERS if ".self_attn." not in n}


# What a policy sends


@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_adapter_names_the_files_of_its_base(tmp_path: Path, tied: bool) -> None:
    """The base is the campaign's, or with ``merge`` the last round's."""
    base, other = (
        save_kind(tmp_path / str(seed), "llama", seed=seed, tie_word_embeddings=tied)
        for seed in (0, 1)
    )
    policy = make(base, merge=True)
    for folder in (base, other):
        policy.load(folder)
        disturb(policy)
        sent = policy.weights("v", tmp_path).tensors
        assert sent is not None
        assert {Path(tensor.file).parent for tensor in sent.values()} == {folder}
        assert any(tensor.update for tensor in sent.values())
        assert any(not tensor.update for tensor in sent.values())
        expected = merged(policy.model)
        assert sent.keys() == expected.keys()
        for name, tensor in read_stored(sent).items():
            torch.testing.assert_close(tensor, expected[name])


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_neox", "gpt2"])
def test_other_forms_are_sent_whole(tmp_path: Path, kind: str) -> None:
    """Files hold experts one by one, GPT-NeoX's fused layers in another order, GPT-2's transposed."""
    base = save_kind(tmp_path / "base", kind, seed=0)
    policy = make(base)
    disturb(policy)
    sent = policy.weights("v", tmp_path).tensors
    assert sent is not None
    assert all(isinstance(tensor, torch.Tensor) for tensor in sent.values())


def test_weights_of_no_folder_are_sent_whole(tmp_path: Path) -> None:
    base, other = (save_kind(tmp_path / str(seed), "llama", seed=seed) for seed in (0, 1))
    policy = make(base, merge=True)
    policy.blend(base, other, 0.5)
    sent = policy.weights("v", tmp_path).tensors
    assert sent is not None
    assert all(isinstance(tensor, torch.Tensor) for tensor in sent.values())


def test_what_was_sent_does_not_move_with_the_next_step(tmp_path: Path) -> None:
    base = save_kind(tmp_path / "base", "llama", seed=0)
    policy = make(base)
    disturb(policy)
    sent = policy.weights("v", tmp_path).tensors
    assert sent is not None
    before = read_stored(sent)
    disturb(policy)
    assert all(torch.equal(before[name], tensor) for name, tensor in read_stored(sent).items())

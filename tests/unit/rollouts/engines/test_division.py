"""Models over several devices: what vLLM can divide, and what Ray is asked for."""

from __future__ import annotations

import json

import pytest

from rollouts.engines import ENGINES
from rollouts.engines.backend import EngineParts
from rollouts.engines.division import WHOLE, DeviceDivision, check_division, share_of_cache
from rollouts.engines.vllm_models import online_methods
from rollouts.errors import UserError

LLAMA = {
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 30,
    "intermediate_size": 11008,
}


@pytest.mark.parametrize(
    ("division", "setting"),
    [
        (DeviceDivision(tensor=3), "tensor_parallel"),
        (DeviceDivision(tensor=64), "tensor_parallel"),
        (DeviceDivision(pipeline=31), "pipeline_parallel"),
        (DeviceDivision(tensor=2, experts=True), "expert_parallel"),
    ],
)
def test_what_cannot_be_divided_is_named(division, setting):
    with pytest.raises(UserError) as refused:
        check_division(LLAMA, division, "config.json")
    assert refused.value.where == f"rollouts.{setting}"


@pytest.mark.parametrize(
    "division",
    [
        WHOLE,
        DeviceDivision(tensor=8),
        DeviceDivision(tensor=16),
        DeviceDivision(tensor=2, pipeline=30),
    ],
)
def test_heads_and_layers_that_fit_are_taken(division):
    """Twice as many devices as heads of keys and values hold copies; layers need not come out even."""
    check_division(LLAMA, division, "config.json")
    check_division({"text_config": LLAMA}, division, "config.json")


def test_a_device_holds_its_part_of_the_cache():
    assert share_of_cache(LLAMA, DeviceDivision(tensor=4)) == 1 / 4
    assert share_of_cache(LLAMA, DeviceDivision(tensor=16, pipeline=2)) == 1 / 16


@pytest.mark.parametrize(
    ("backend", "parts", "setting"),
    [
        ("transformers", EngineParts(division=DeviceDivision(tensor=2)), "tensor_parallel"),
        ("transformers", EngineParts(division=DeviceDivision(pipeline=2)), "pipeline_parallel"),
        ("transformers", EngineParts(quantization="fp8_per_tensor"), "quantization"),
        ("transformers", EngineParts(weight_transfer="gloo"), "weight_transfer"),
        ("vllm", EngineParts(division=DeviceDivision(tensor=2, executor="ray")), "executor"),
        ("vllm", EngineParts(quantization="fp8_per_block"), "quantization"),
        ("vllm", EngineParts(weight_transfer="nccl"), "weight_transfer"),
    ],
)
def test_a_backend_refuses_what_it_lacks_on_a_cpu(tmp_path, backend, parts, setting):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(UserError) as refused:
        ENGINES[backend].check_parts(tmp_path, parts, "cpu")
    assert refused.value.where == f"rollouts.{setting}"
    if backend == "vllm":
        ENGINES[backend].check_parts(tmp_path, parts, "cuda")


def test_a_method_that_vllm_lacks_is_refused_with_the_nearest(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    parts = EngineParts(quantization="fp8_per_tenser")
    with pytest.raises(UserError, match="cannot quantise"):
        ENGINES["vllm"].check_parts(tmp_path, parts, "cuda")


def test_methods_are_read_from_vllm_itself():
    assert {"fp8_per_tensor", "fp8_per_block", "mxfp8"} <= set(online_methods())

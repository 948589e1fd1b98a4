"""Copies of the demo's base model whose weights are quantised for real, in formats that vLLM reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from align.data.demo import BASE_MODEL

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers that are quantised; embeddings and norms stay as they are."""


def int8_model(folder: Path, *, damage: float = 0.0) -> Path:
    """Write a copy in compressed-tensors W8A8: int8 weights with a scale per row, int8 activations.

    Args:
        damage: standard deviation of noise on every weight, as a multiple of the weights' own.
    """
    tensors: dict[str, torch.Tensor] = {}
    torch.manual_seed(0)
    for name, tensor in load_file(BASE_MODEL / "model.safetensors").items():
        if name.split(".")[-2] not in LAYERS:
            tensors[name] = tensor
            continue
        noisy = tensor + damage * tensor.std() * torch.randn_like(tensor)
        scale = noisy.abs().amax(dim=1, keepdim=True) / 127
        tensors[name] = (noisy / scale).round().clamp(-127, 127).to(torch.int8)
        tensors[f"{name}_scale"] = scale
    return _write(folder, tensors, _group(8, "channel", None), "int-quantized", activations=True)


def int4_model(folder: Path, *, group: int = 32) -> Path:
    """Write a copy in compressed-tensors W4A16: four bits a weight, with a scale per group of a row."""
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(BASE_MODEL / "model.safetensors").items():
        if name.split(".")[-2] not in LAYERS:
            tensors[name] = tensor
            continue
        rows, columns = tensor.shape
        grouped = tensor.reshape(rows, columns // group, group)
        scale = grouped.abs().amax(dim=2, keepdim=True) / 7
        values = (grouped / scale).round().clamp(-8, 7).reshape(rows, columns).to(torch.int32) + 8
        shifts = torch.arange(0, 32, 4, dtype=torch.int64)
        packed = (values.reshape(rows, columns // 8, 8).to(torch.int64) << shifts).sum(dim=2)
        stem = name.removesuffix("weight")
        tensors[f"{stem}weight_packed"] = packed.to(torch.uint32).view(torch.int32)
        tensors[f"{stem}weight_scale"] = scale.squeeze(2)
        tensors[f"{stem}weight_shape"] = torch.tensor([rows, columns])
    return _write(folder, tensors, _group(4, "group", group), "pack-quantized", activations=False)


def _group(bits: int, strategy: str, size: int | None) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy, "group_size": size,
            "dynamic": False}  # fmt: skip


def _write(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    weights: dict[str, Any],
    format: str,
    *,
    activations: bool,
) -> Path:
    shutil.copytree(BASE_MODEL, folder)
    save_file(
        {n: t.contiguous() for n, t in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    config = json.loads((folder / "config.json").read_text())
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {
            "targets": ["Linear"], "weights": weights, "input_activations": inputs if activations else None,
        }},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder

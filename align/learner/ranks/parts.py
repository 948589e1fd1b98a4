"""Snapshots of sharded weights, written by all ranks together: each has the files of some layers.

    model-00001-of-00004.safetensors    whole tensors of the first layers, written by the first rank
    model.safetensors.index.json        file of each tensor, as transformers and vLLM read it

A layer is gathered, kept by the rank whose part it belongs to, and forgotten by the others, so no rank
ever holds more than its part and one layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align.learner.folder.folder import INDEX, WEIGHTS
from align.learner.model.loading import state_precision
from align.learner.model.mapping import stored_form
from align.learner.ranks.ranks import Ranks
from align.learner.ranks.sharding import decoder_layers, whole


def write_parts(model: Any, folder: Path, ranks: Ranks, dtype: torch.dtype) -> None:
    """Write a sharded model into a folder, in which each rank finds what it wrote itself at least.

    All ranks call this together. The first also writes the index and the configs.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    if ranks.rank == 0:
        # The configs are those of a model that one rank writes. Files of parts would be taken for old ones.
        model.save_pretrained(folder, state_dict={})
        (folder / WEIGHTS).unlink(missing_ok=True)
        state_precision(folder, dtype)
    units = units_of(model)
    owners = dealt_in_order([sum(t.numel() for t in unit.values()) for unit in units], ranks.size)
    part: dict[str, Tensor] = {}
    for unit, owner in zip(units, owners, strict=True):
        gathered = _gathered(unit, dtype, keep=owner == ranks.rank)
        if gathered:
            part |= stored_form(model, gathered)
    name = f"model-{ranks.rank + 1:05d}-of-{max(owners) + 1:05d}.safetensors"
    if part:
        save_file(part, folder / name, metadata={"format": "pt"})
    listed = ranks.exchange({key: (name, t.numel(), t.nbytes) for key, t in part.items()})
    if ranks.rank == 0:
        _write_index(folder, {key: entry for entries in listed for key, entry in entries.items()})


def units_of(model: Any) -> list[dict[str, Tensor]]:
    """Divide a model's tensors into those of each decoder layer and the others one by one, tied ones once.

    A layer stays together, since its tensors may be fused on disk.
    """
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    layer_of = {
        id(tensor): index
        for index, layer in enumerate(decoder_layers(model))
        for tensor in layer.state_dict(keep_vars=True).values()
    }
    units: dict[Any, dict[str, Tensor]] = {}
    tensors: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in tensors and name not in ignored:
            tensors.add(id(tensor))
            units.setdefault(layer_of.get(id(tensor), name), {})[name] = tensor
    return list(units.values())


def dealt_in_order(sizes: Sequence[int], count: int) -> list[int]:
    """Return the part of each size, so that at most ``count`` parts in order have about the same total.

    >>> dealt_in_order([4, 2, 2, 4], 2)
    [0, 0, 1, 1]
    >>> dealt_in_order([9, 1, 1], 3)
    [0, 1, 1]
    """
    total, before, parts = sum(sizes), 0, []
    for size in sizes:
        # The part in whose share the middle of the item lies.
        parts.append(min(count - 1, int((before + size / 2) * count / total)) if total else 0)
        before += size
    ranks = {part: rank for rank, part in enumerate(sorted(set(parts)))}
    return [ranks[part] for part in parts]


def _gathered(unit: Mapping[str, Tensor], dtype: torch.dtype, *, keep: bool) -> dict[str, Tensor]:
    """Return whole tensors on the host if this rank keeps them; every rank takes part."""
    whole_tensors = {}
    for name, tensor in unit.items():
        full = whole(tensor.detach())
        if keep:
            whole_tensors[name] = full.to("cpu", dtype if full.is_floating_point() else full.dtype)
    return whole_tensors


def _write_index(folder: Path, entries: Mapping[str, tuple[str, int, int]]) -> None:
    sizes = {
        "total_parameters": sum(count for _, count, _ in entries.values()),
        "total_size": sum(size for _, _, size in entries.values()),
    }
    content = {
        "metadata": sizes,
        "weight_map": {key: file for key, (file, _, _) in entries.items()},
    }
    (folder / INDEX).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")

"""Weights on the straight line between two snapshots, read tensor by tensor.

    theta(a) = theta_start + a * (theta_end - theta_start)        a in [0, 1]

At the ends the result is the snapshot itself, bit for bit. In between it is computed in float32, whatever
the precision of the files. An adapter is blended by its factors. If the start is the base, which has no
adapter, its update is zero, and scaling the factor ``B`` scales the end's update exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from rollouts.errors import RunError


def between(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Return the point that is ``share`` of the way from ``start`` to ``end``."""
    if share in (0.0, 1.0):
        return end if share else start
    return torch.lerp(start.float(), end.float(), share)


def blended(start: Path, end: Path, share: float) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the weights between two snapshots, by the names of ``end``.

    Raises:
        RunError: the two snapshots have different tensors.
    """
    from safetensors import safe_open

    before = _places(start)
    for name, file in _places(end).items():
        with safe_open(file, "pt") as opened:
            tensor = opened.get_tensor(name)
        if name in before:
            with safe_open(before[name], "pt") as opened:
                yield name, between(opened.get_tensor(name), tensor, share)
        elif ".lora_A." in name:
            yield name, tensor
        elif ".lora_B." in name:
            yield name, between(torch.zeros_like(tensor), tensor, share)
        else:
            raise RunError(
                f"there is nothing between the snapshots {start.name[:16]} and {end.name[:16]}: "
                f"only the second holds {name!r}",
                where="repair.interpolate",
                remedy="switch this rung off for such rounds",
            )


def _places(folder: Path) -> dict[str, Path]:
    """Map the tensors of a snapshot to their files; the base of an adapter counts as empty."""
    from safetensors import safe_open

    places: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            places |= dict.fromkeys(opened.keys(), file)
    return places

"""Device that models compute on: a GPU where this process sees one, else the processor."""

from __future__ import annotations

from typing import Literal

Device = Literal["auto", "cpu", "cuda"]


def resolve_device(device: Device) -> Literal["cpu", "cuda"]:
    """Return the device; ``auto`` becomes ``cuda`` exactly when this process can see a GPU."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"

"""Tensors of a model folder that are read where they are needed, with an adapter's update added there.

A merged adapter changes a few megabytes of numbers and yields a whole model. Engines that see the same
disk as the learner get the adapter's factors and the names of the files, and add the two themselves:
nobody holds or sends a second copy of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRankUpdate:
    """An adapter's change of one weight: ``scale * left @ right``, in float32."""

    left: np.ndarray[Any, Any]
    """Factor of shape [output, rank]."""
    right: np.ndarray[Any, Any]
    """Factor of shape [rank, input]."""
    scale: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """A tensor in a safetensors file, by its name there, and what is to be added to it."""

    file: str
    name: str
    update: LowRankUpdate | None = None


class StoredTensorReader:
    """Reads tensors of a few files; each file is opened once and its pages are mapped, not copied."""

    def __init__(self) -> None:
        self._files: dict[str, Any] = {}

    def read(self, tensor: StoredTensor) -> Tensor:
        """Return a tensor as stored, or in float32 with its update added.

        Raises:
            RuntimeError: the file cannot be read, or holds no such tensor.
        """
        import torch
        from safetensors import SafetensorError, safe_open

        try:
            if tensor.file not in self._files:
                self._files[tensor.file] = safe_open(tensor.file, framework="pt")
            stored: Tensor = self._files[tensor.file].get_tensor(tensor.name)
        except (OSError, SafetensorError) as error:
            where = f"{tensor.name!r} cannot be read from {tensor.file}"
            raise RuntimeError(f"{where}: {error}") from error
        if tensor.update is None:
            return stored
        left, right = (torch.from_numpy(a) for a in (tensor.update.left, tensor.update.right))
        return (left @ right).mul_(tensor.update.scale).add_(stored)


def read_stored(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Read every `StoredTensor` among the values; other values stay what they are."""
    reader = StoredTensorReader()
    return {
        name: reader.read(tensor) if isinstance(tensor, StoredTensor) else tensor
        for name, tensor in tensors.items()
    }


def unchanged(tensors: Mapping[str, Any], loaded: Mapping[str, Any]) -> set[str]:
    """Return the names whose tensor is the same part of a file in both, with nothing added."""
    return {
        name
        for name, tensor in tensors.items()
        if isinstance(tensor, StoredTensor) and tensor.update is None and loaded.get(name) == tensor
    }

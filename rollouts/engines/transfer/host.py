"""Tensors in host memory, in a form that crosses Ray and processes without copies.

``to_host``/``from_host`` turn torch tensors into arrays that cross Ray without a copy, and back.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rollouts.engines.stored_tensor import StoredTensor, StoredTensorReader

if TYPE_CHECKING:
    import torch

_BITS = {"bfloat16": "int16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
"""torch dtypes that numpy lacks, and the dtype of equal width that carries their bits."""


class HostTensor(NamedTuple):
    """One tensor in host memory: ``array`` holds the bits, ``dtype`` is torch's name for them."""

    array: np.ndarray[Any, Any]
    dtype: str


def to_host(tensors: Mapping[str, Any]) -> dict[str, HostTensor | StoredTensor]:
    """Convert torch tensors (any device) or numpy arrays to numpy views where that is possible; stored
    tensors stay what they are.

    CPU tensors that are contiguous are not copied, so the result must be used up (put into the
    object store) before the next optimizer step writes to them.
    """
    return {name: _to_host(tensor) for name, tensor in tensors.items()}


def from_host(tensors: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, CPU tensor) pairs that share memory with their arrays; stored ones are read one by one.

    Arrays from Ray are read-only, and so must the tensors be treated.
    """
    with warnings.catch_warnings():
        # torch warns that writing to a read-only array is undefined; nobody here writes.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        pairs = [(name, _from_host(tensor)) for name, tensor in tensors.items()]
    reader = StoredTensorReader()
    for name, tensor in pairs:
        yield name, reader.read(tensor) if isinstance(tensor, StoredTensor) else tensor


def _to_host(tensor: Any) -> HostTensor | StoredTensor:
    if isinstance(tensor, HostTensor | StoredTensor):
        return tensor
    if isinstance(tensor, np.ndarray):
        return HostTensor(np.ascontiguousarray(tensor), str(tensor.dtype))
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    data = tensor.detach().to("cpu").contiguous()
    if dtype in _BITS:
        data = data.view(getattr(torch, _BITS[dtype]))
    return HostTensor(data.numpy(), dtype)


def _from_host(tensor: Any) -> torch.Tensor | StoredTensor:
    import torch

    if isinstance(tensor, torch.Tensor | StoredTensor):
        return tensor
    array, dtype = tensor if isinstance(tensor, HostTensor) else (tensor, str(tensor.dtype))
    plain = torch.from_numpy(array)
    return plain.view(getattr(torch, dtype)) if dtype in _BITS else plain


def size_of(tensor: HostTensor | StoredTensor) -> int:
    """Return the bytes of a tensor that travel; of one that is read from files those of its update."""
    if isinstance(tensor, HostTensor):
        return int(tensor.array.nbytes)
    update = tensor.update
    return 0 if update is None else int(update.left.nbytes + update.right.nbytes)


def in_parts(
    tensors: Mapping[str, HostTensor | StoredTensor], limit: int
) -> Iterator[dict[str, HostTensor | StoredTensor]]:
    """Cut an update into parts that hold at most ``limit`` bytes, or one tensor.

    >>> tensor = HostTensor(np.zeros(4, np.uint8), "uint8")
    >>> [list(part) for part in in_parts({"a": tensor, "b": tensor, "c": tensor}, 8)]
    [['a', 'b'], ['c']]
    """
    part: dict[str, HostTensor | StoredTensor] = {}
    filled = 0
    for name, tensor in tensors.items():
        size = size_of(tensor)
        if part and filled + size > limit:
            yield part
            part, filled = {}, 0
        part[name] = tensor
        filled += size
    yield part

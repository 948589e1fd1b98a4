"""Tensors of an update packed into buckets, which sender and receivers cut alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

BUCKET_BYTES = 64 << 20
"""Size of a bucket; a larger tensor has one of its own."""


@dataclass(frozen=True, slots=True)
class TensorForm:
    """Name, numbers and shape of a tensor, without its content."""

    name: str
    dtype: str
    """torch's name of the numbers, such as ``bfloat16``."""
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        import torch

        return prod(self.shape) * int(getattr(torch, self.dtype).itemsize)


def form_of(name: str, tensor: Tensor) -> TensorForm:
    """Return the form of a tensor; of a sharded one that of the whole."""
    return TensorForm(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def in_runs(items: Sequence[T], sizes: Sequence[int], limit: int) -> Iterator[list[T]]:
    """Cut items into runs that together have at most ``limit``, or are one item.

    >>> list(in_runs("abcd", [4, 4, 9, 1], 8))
    [['a', 'b'], ['c'], ['d']]
    """
    run: list[T] = []
    filled = 0
    for item, size in zip(items, sizes, strict=True):
        if run and filled + size > limit:
            yield run
            run, filled = [], 0
        run.append(item)
        filled += size
    if run:
        yield run


def in_buckets(forms: Sequence[TensorForm], limit: int) -> list[list[TensorForm]]:
    """Deal tensors to buckets, in their order."""
    return list(in_runs(forms, [form.nbytes for form in forms], limit))


def pack(bucket: Sequence[TensorForm], pairs: Iterable[tuple[str, Tensor]], buffer: Tensor) -> None:
    """Copy the bucket's tensors, which come next, into a buffer of bytes.

    Raises:
        ValueError: another tensor came than was announced, or none: receivers would read other weights.
    """
    import torch

    start = 0
    for form, (name, tensor) in zip(bucket, pairs, strict=False):
        actual = form_of(name, tensor)
        if actual != form:
            raise ValueError(f"{actual} came where engines were told to expect {form}")
        part = buffer[start : start + form.nbytes]
        part.copy_(tensor.detach().contiguous().reshape(-1).view(torch.uint8))
        start += form.nbytes
    if start < buffer.numel():
        raise ValueError(f"tensors ended {buffer.numel() - start} bytes before the bucket's end")


def unpack(bucket: Sequence[TensorForm], buffer: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a bucket, which share the buffer's memory."""
    import torch

    parts = torch.split(buffer, [form.nbytes for form in bucket])
    for form, part in zip(bucket, parts, strict=True):
        # A view needs its first byte at a multiple of the numbers' size.
        aligned = part if part.storage_offset() % 8 == 0 else part.clone()
        yield form.name, aligned.view(getattr(torch, form.dtype)).view(form.shape)

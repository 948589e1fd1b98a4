"""Snapshots stored as differences: the bits in which each tensor file differs from another snapshot's.

    store/packed/<id>/     manifest.json as published, delta.json, and one compressed block file

A file that its reference has too, of the same size, is XORed with it; its bytes are regrouped by their
place in a number, so that signs, exponents and leading digits, which rarely change, lie together; then it
is compressed by zstandard. Nothing is rounded: what comes back has the hashes that the manifest lists, so
an id does not depend on how its snapshot is stored. Files with the bytes of the reference's are only named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, BinaryIO

from align.errors import SnapshotError
from align.store.durable import sync
from align.store.snapshots.manifest import MANIFEST, Manifest
from rollouts.types import SnapshotId

if TYPE_CHECKING:
    from pyarrow import Codec

DELTA = "delta.json"
BLOCKS = "blocks"
"""Names of the two files that stand in for those of the snapshot."""
WHOLE_EVERY = 8
"""Largest number of snapshots in a chain, the whole one that it begins with counted."""
CHUNK_BYTES = 16 << 20
"""Bytes of a file that are compressed at a time; a multiple of every number's size."""
LEVEL = 3
"""Level of zstandard."""
WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2}
"""Bytes of a number by its type in a safetensors file; of others one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedFile:
    """One file of a packed snapshot."""

    path: str
    width: int
    """Bytes of a number, by which bytes are regrouped."""
    differs: bool
    """True if it is stored as its difference from the reference's file, else as it is."""
    blocks: tuple[tuple[int, int], ...]
    """Compressed and plain bytes of each block, in order; none if the reference's file is the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """Content of delta.json."""

    reference: SnapshotId
    """Snapshot that the differences are from."""
    depth: int
    """Number of references until a whole one."""
    files: tuple[PackedFile, ...]

    @classmethod
    def read(cls, folder: Path) -> Delta:
        """Read the delta of a packed snapshot."""
        path = folder / DELTA
        try:
            data = json.loads(path.read_text())
            files = tuple(
                PackedFile(**{**file, "blocks": tuple(map(tuple, file["blocks"]))})
                for file in data["files"]
            )
            return cls(reference=data["reference"], depth=data["depth"], files=files)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SnapshotError(
                f"the packed snapshot cannot be read ({error})",
                where=str(path),
                remedy="restore its folder from a backup",
            ) from error


def pack(
    manifest: Manifest,
    folder: Path,
    reference: Path,
    reference_id: SnapshotId,
    depth: int,
    to: Path,
) -> None:
    """Write a snapshot as its difference from another one.

    Args:
        folder: the verified snapshot, and ``reference`` the other one's.
        depth: number of references until a whole one.
        to: an empty folder.
    """
    files: list[PackedFile] = []
    with (to / BLOCKS).open("wb") as blocks:
        for entry in manifest.files:
            path, other = folder / entry.path, reference / entry.path
            differs = other.is_file() and other.stat().st_size == entry.size
            if differs and _same(path, other):
                files.append(PackedFile(path=entry.path, width=1, differs=True, blocks=()))
                continue
            width = _width(path)
            sizes = tuple(_pack_file(path, other if differs else None, width, blocks))
            files.append(PackedFile(path=entry.path, width=width, differs=differs, blocks=sizes))
    delta = Delta(reference=reference_id, depth=depth, files=tuple(files))
    (to / DELTA).write_text(json.dumps(asdict(delta)))
    (to / MANIFEST).write_bytes(manifest.to_bytes())
    for name in (BLOCKS, DELTA, MANIFEST):
        sync(to / name)
    sync(to)


def unpack(packed: Path, reference: Path, to: Path) -> None:
    """Write the files of a packed snapshot into an empty folder; the caller compares their hashes.

    Raises:
        SnapshotError: a block cannot be decompressed, the reference lacks a file, or the delta names others
            than the manifest does.
    """
    delta = Delta.read(packed)
    content = (packed / MANIFEST).read_bytes()
    listed = {entry.path for entry in Manifest.from_bytes(content, where=str(packed)).files}
    # The delta has no hash of its own: a path of its own might lead out of the folder.
    if {file.path for file in delta.files} != listed:
        raise SnapshotError(
            "the packed snapshot names other files than its manifest",
            where=str(packed / DELTA),
            cause="it was changed",
            remedy="restore its folder from a backup",
        )
    try:
        with (packed / BLOCKS).open("rb") as blocks:
            for file in delta.files:
                target, other = to / file.path, reference / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                if file.differs and not file.blocks:
                    copyfile(other, target)
                    continue
                with target.open("wb") as out:
                    for chunk in _unpack_file(file, other, blocks):
                        out.write(chunk)
    except (OSError, ValueError) as error:
        raise SnapshotError(
            f"the packed snapshot cannot be unpacked ({error})",
            where=str(packed),
            cause="its blocks or its reference were changed",
            remedy="restore its folder from a backup; keel verify names what else has changed",
        ) from error
    (to / MANIFEST).write_bytes(content)


def _pack_file(
    path: Path, other: Path | None, width: int, blocks: BinaryIO
) -> Iterator[tuple[int, int]]:
    codec = _codec()
    for chunk in _chunks(path, other):
        content = codec.compress(_regrouped(chunk, width), asbytes=True)
        blocks.write(content)
        yield len(content), len(chunk)


def _unpack_file(file: PackedFile, other: Path, blocks: BinaryIO) -> Iterator[bytes]:
    codec = _codec()
    reference = other.open("rb") if file.differs else None
    try:
        for packed, plain in file.blocks:
            content = codec.decompress(blocks.read(packed), plain, asbytes=True)
            chunk = _restored(content, file.width)
            yield chunk if reference is None else _xor(chunk, reference.read(plain))
    finally:
        if reference is not None:
            reference.close()


def _chunks(path: Path, other: Path | None) -> Iterator[bytes]:
    """Yield a file in parts, each XORed with the same part of another one."""
    with path.open("rb") as file, (other or path).open("rb") as reference:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk if other is None else _xor(chunk, reference.read(CHUNK_BYTES))


def _same(path: Path, other: Path) -> bool:
    return all(not chunk.strip(b"\0") for chunk in _chunks(path, other))


def _width(path: Path) -> int:
    """Return the bytes of a number in a safetensors file; 1 of other files, and of mixed ones."""
    if path.suffix != ".safetensors":
        return 1
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    types = {tensor["dtype"] for name, tensor in header.items() if name != "__metadata__"}
    widths = {WIDTHS.get(name, 1) for name in types}
    return widths.pop() if len(widths) == 1 else 1


def _xor(chunk: bytes, other: bytes) -> bytes:
    import numpy as np

    return np.bitwise_xor(np.frombuffer(chunk, np.uint8), np.frombuffer(other, np.uint8)).tobytes()


def _regrouped(chunk: bytes, width: int) -> bytes:
    """Return the first bytes of all numbers, then the second ones, and so on, then what is left over."""
    import numpy as np

    whole = len(chunk) - len(chunk) % width
    numbers = np.frombuffer(chunk, np.uint8, whole).reshape(-1, width)
    return numbers.T.tobytes() + chunk[whole:]


def _restored(chunk: bytes, width: int) -> bytes:
    """Return what `_regrouped` was given."""
    import numpy as np

    whole = len(chunk) - len(chunk) % width
    groups = np.frombuffer(chunk, np.uint8, whole).reshape(width, -1)
    return groups.T.tobytes() + chunk[whole:]


def _codec() -> Codec:
    import pyarrow as pa

    return pa.Codec("zstd", compression_level=LEVEL)

"""Packed snapshots: the same bits, the same id, less room, and a bounded chain."""

from __future__ import annotations

import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from align.errors import SnapshotError
from align.store.snapshots.packed import WHOLE_EVERY, _regrouped, _restored
from align.store.snapshots.snapshots import Provenance, Snapshot, SnapshotStore
from tests.unit.ledgers import RAM


def published(
    store: SnapshotStore, parent: Snapshot | None, tensors: dict[str, torch.Tensor], **extra: Any
) -> Snapshot:
    def write(folder: Path) -> None:
        save_file(tensors, folder / "model.safetensors")
        (folder / "tokenizer.json").write_text('{"vocabulary": "' + 500 * "word " + '"}')

    origin = Provenance(kind="model", parent=parent.id if parent else None, extra=extra)
    return store.publish(write, origin)


def weights(dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(20_000, generator=torch.Generator().manual_seed(seed)).to(dtype)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 0.60), (torch.bfloat16, 0.35)])
def test_a_chain_comes_back_bit_by_bit(tmp_path: Path, dtype: torch.dtype, most: float) -> None:
    store = SnapshotStore(tmp_path)
    value = weights(torch.float32)
    chain = [published(store, None, {"w": value.to(dtype)})]
    for step in range(1, WHOLE_EVERY + 2):
        value = value + 1e-4 * value * weights(torch.float32, step)
        chain.append(published(store, chain[-1], {"w": value.to(dtype)}, step=step))
    contents = {s.id: (s.path / "model.safetensors").read_bytes() for s in chain}
    packed = [store.pack(snapshot.id) for snapshot in chain]
    # The base and the one that would be too deep stay whole.
    assert packed == [False, *[True] * (WHOLE_EVERY - 1), False, True]
    ratio = size(tmp_path / "packed" / chain[1].id) / size(chain[0].path)
    assert ratio < most
    fresh = SnapshotStore(tmp_path)
    assert fresh.manifest(chain[2].id) == chain[2].manifest
    for snapshot in reversed(chain):
        path = fresh.open(snapshot.id).path
        assert (path / "model.safetensors").read_bytes() == contents[snapshot.id]
        assert load_file(path / "model.safetensors")["w"].dtype == dtype
    assert not fresh.staged()


@given(order=st.permutations(range(1, WHOLE_EVERY + 3)))
@settings(max_examples=8, deadline=None)
def test_no_order_of_packing_makes_a_longer_chain(order: list[int]) -> None:
    with TemporaryDirectory(dir=RAM) as folder:
        store = SnapshotStore(Path(folder))
        chain = [published(store, None, {"w": torch.zeros(8)})]
        for step in range(1, WHOLE_EVERY + 3):
            chain.append(published(store, chain[-1], {"w": torch.full((8,), float(step))}))
        for place in order:
            store.pack(chain[place].id)
        depths = [store._depth(snapshot.id) for snapshot in chain]
        assert 0 < max(depths) < WHOLE_EVERY
        for snapshot in chain:
            SnapshotStore(Path(folder)).verify(snapshot.id)


def test_what_somebody_reads_is_neither_packed_nor_removed(tmp_path: Path) -> None:
    """Readers and runner are other processes; a lock of this one holds against itself, too."""
    store, runner = SnapshotStore(tmp_path), SnapshotStore(tmp_path)
    base = published(store, None, {"w": weights(torch.float32)})
    child = published(store, base, {"w": weights(torch.float32) + 1e-5})
    with store.reading(child.id) as snapshot:
        assert not runner.pack(child.id) and runner.is_packed(child.id)
        runner.remove([child.id])
        assert load_file(snapshot.path / "model.safetensors")["w"].shape == (20_000,)
    assert runner.pack(child.id) and not child.path.exists()
    runner.remove([child.id])
    assert not runner.is_here(child.id)


def test_readers_beside_a_runner_that_packs_find_every_byte(tmp_path: Path) -> None:
    """Between two looks of a reader a snapshot is packed, and whole again, at any time."""
    store = SnapshotStore(tmp_path)
    base = published(store, None, {"w": weights(torch.float32)})
    expected = {"w": weights(torch.float32) + 1e-5}
    child = published(store, base, expected)
    stop = threading.Event()

    def run() -> None:
        runner = SnapshotStore(tmp_path)
        while not stop.is_set():
            runner.pack(child.id)
            runner.open(child.id)

    packer = threading.Thread(target=run)
    packer.start()
    try:
        for _ in range(15):
            reader = SnapshotStore(tmp_path)
            reader.verify(child.id)
            with reader.reading(child.id) as snapshot:
                assert torch.equal(
                    load_file(snapshot.path / "model.safetensors")["w"], expected["w"]
                )
            reader.open(child.id)
    finally:
        stop.set()
        packer.join()


def test_what_is_whole_again_is_packed_again_at_once(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    base = published(store, None, {"w": weights(torch.float32)})
    child = published(store, base, {"w": weights(torch.float32) + 1e-5})
    assert store.pack(child.id) and not child.path.exists()
    assert store.open(child.id).path.is_dir() and store.is_packed(child.id)
    assert store.pack(child.id) and not child.path.exists()
    assert store.reference(child.id) == base.id and store.reference(base.id) is None
    store.verify(child.id)
    assert not child.path.exists() and not store.staged()


def test_whole_files_stay_where_their_packed_form_has_rotted(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    base = published(store, None, {"w": weights(torch.float32)})
    child = published(store, base, {"w": weights(torch.float32) + 1e-5})
    assert store.pack(child.id)
    content = (store.open(child.id).path / "model.safetensors").read_bytes()
    blocks = tmp_path / "packed" / child.id / "blocks"
    blocks.write_bytes(b"rotten" + blocks.read_bytes()[6:])
    assert store.pack(child.id)  # Packed anew, from the whole files.
    assert (
        SnapshotStore(tmp_path).open(child.id).path / "model.safetensors"
    ).read_bytes() == content


def test_a_copy_of_a_packed_one_is_whole_and_leaves_it_packed(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "store")
    base = published(store, None, {"w": weights(torch.float32)})
    child = published(store, base, {"w": weights(torch.float32) + 1e-5})
    assert store.pack(child.id)
    for snapshot in (base, child):
        store.copy(snapshot.id, tmp_path / "copy" / "snapshots" / snapshot.id)
        assert SnapshotStore(tmp_path / "copy").open(snapshot.id).manifest == snapshot.manifest
    assert not child.path.exists() and not store.staged()


def test_a_delta_leads_nowhere_else(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "store")
    base = published(store, None, {"w": weights(torch.float32)})
    child = published(store, base, {"w": weights(torch.float32, 1)})
    assert store.pack(child.id)
    delta = tmp_path / "store" / "packed" / child.id / "delta.json"
    delta.write_text(delta.read_text().replace("tokenizer.json", "../../../written.json"))
    with pytest.raises(SnapshotError, match="names other files than its manifest"):
        store.open(child.id)
    assert not list(tmp_path.rglob("written.json"))


def test_a_changed_block_is_named_and_nothing_installed(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    base = published(store, None, {"w": weights(torch.float32)})
    child = published(store, base, {"w": weights(torch.float32, 1)})
    store.pack(child.id)
    blocks = tmp_path / "packed" / child.id / "blocks"
    content = bytearray(blocks.read_bytes())
    content[len(content) // 2] ^= 4
    blocks.write_bytes(content)
    for read in (store.open, store.verify):
        with pytest.raises(SnapshotError):
            read(child.id)
    assert not child.path.exists() and not store.staged()


def test_a_crash_before_the_whole_files_go_leaves_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    store = SnapshotStore(tmp_path)
    base = published(store, None, {"w": weights(torch.float32)})
    child = published(store, base, {"w": weights(torch.float32) * 1.001})
    with monkeypatch.context() as patch:
        patch.setattr(SnapshotStore, "_remove_folder", kill)
        with pytest.raises(Killed):
            store.pack(child.id)
    fresh = SnapshotStore(tmp_path)
    assert fresh.open(child.id).path.is_dir() and fresh.is_packed(child.id)
    assert fresh.pack(child.id)
    fresh.open(child.id)


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=1, max_size=100), st.sampled_from([1, 2, 4, 8]))
def test_regrouping_is_undone(content: bytes, width: int) -> None:
    assert _restored(_regrouped(content, width), width) == content


def test_bytes_are_grouped_by_place() -> None:
    assert _regrouped(b"abcdefghij", 4) == b"aebfcgdh" + b"ij"

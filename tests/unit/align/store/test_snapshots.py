"""A snapshot is whole, unchanged and named by its content, or it is refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from align.errors import SnapshotError, UserError
from align.store.snapshots.manifest import FileEntry, Manifest, Provenance
from align.store.snapshots.snapshots import SnapshotStore

FILES = {
    "model.safetensors": b"\x10\x00weights",
    "config.json": b"{}",
    "tokenizer/vocab.txt": b"a\nb\n",
}
PROVENANCE = Provenance(kind="model", base="demo/digits", round="reverse", seeds={"run": 7})


def writer(files: Mapping[str, bytes]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    return write


def left_in(root: Path) -> list[str]:
    """Everything a store holds besides its two empty folders."""
    return sorted(
        str(p.relative_to(root)) for p in root.rglob("*") if p.name not in ("staging", "snapshots")
    )


def unlock(folder: Path) -> None:
    """Make a snapshot writable, as someone who edits it by hand does first."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)


def test_the_id_is_the_sha256_of_a_manifest_that_lists_every_file(tmp_path: Path) -> None:
    snapshot = SnapshotStore(tmp_path).publish(writer(FILES), PROVENANCE)

    content = (snapshot.path / "manifest.json").read_bytes()
    assert snapshot.id == hashlib.sha256(content).hexdigest()
    assert snapshot.path == tmp_path / "snapshots" / snapshot.id
    assert snapshot.kind == "model"
    assert snapshot.manifest.blob_bytes == 9 + 2 + 4
    manifest = json.loads(content)
    assert manifest["schema_version"] == 1
    assert manifest["kind"] == "model"
    assert manifest["provenance"]["round"] == "reverse"
    assert manifest["files"] == [
        {"path": name, "size": len(FILES[name]), "sha256": hashlib.sha256(FILES[name]).hexdigest()}
        for name in ("config.json", "model.safetensors", "tokenizer/vocab.txt")
    ]


def test_the_same_content_has_the_same_id_in_every_store(tmp_path: Path) -> None:
    first = SnapshotStore(tmp_path / "a").publish(writer(FILES), PROVENANCE)
    backwards = dict(reversed(FILES.items()))
    second = SnapshotStore(tmp_path / "b").publish(writer(backwards), PROVENANCE)
    assert first.id == second.id

    other = Provenance(kind="model", base="demo/digits", round="sort", seeds={"run": 7})
    assert SnapshotStore(tmp_path / "a").publish(writer(FILES), other).id != first.id


def test_publishing_twice_returns_the_same_snapshot_and_leaves_no_staging(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    first = store.publish(writer(FILES), PROVENANCE)
    assert store.publish(writer(FILES), PROVENANCE) == first
    assert SnapshotStore(tmp_path).publish(writer(FILES), PROVENANCE) == first
    assert not (tmp_path / "staging").exists()
    assert len(list((tmp_path / "snapshots").iterdir())) == 1


def test_a_published_snapshot_is_read_only(tmp_path: Path) -> None:
    snapshot = SnapshotStore(tmp_path).publish(writer(FILES), PROVENANCE)
    for path in (snapshot.path, *snapshot.path.rglob("*")):
        assert path.stat().st_mode & 0o222 == 0, path


def test_publishing_again_finishes_what_a_dead_publisher_began(tmp_path: Path) -> None:
    snapshot = SnapshotStore(tmp_path).publish(writer(FILES), PROVENANCE)
    unlock(snapshot.path)  # as after a crash between the rename and the last chmod
    SnapshotStore(tmp_path).publish(writer(FILES), PROVENANCE)
    assert snapshot.path.stat().st_mode & 0o222 == 0


def test_a_snapshot_opens_with_its_whole_provenance(tmp_path: Path) -> None:
    provenance = Provenance(
        kind="adapter",
        parent="ab" * 32,
        base="org/model@5f2c",
        round="reverse",
        config_hash="cd" * 32,
        seeds={"run": 7},
        data_hashes={"rev": "ef" * 32},
        versions={"tokenizers": "0.22"},
        extra={"lora": {"rank": 16}, "max_tokens": 8},
    )
    published = SnapshotStore(tmp_path).publish(writer(FILES), provenance)
    opened = SnapshotStore(tmp_path).open(published.id)
    assert opened == published
    assert opened.manifest.provenance == provenance


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_one_flipped_bit_is_refused_and_the_file_is_named(tmp_path: Path, name: str) -> None:
    snapshot = SnapshotStore(tmp_path).publish(writer(FILES), PROVENANCE)
    unlock(snapshot.path)
    content = bytearray((snapshot.path / name).read_bytes())
    content[1] ^= 1
    (snapshot.path / name).write_bytes(content)

    with pytest.raises(SnapshotError) as caught:
        SnapshotStore(tmp_path).open(snapshot.id)
    assert caught.value.where == str(snapshot.path / name)


def test_a_change_after_the_first_open_is_seen_by_the_same_store(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    snapshot = store.publish(writer(FILES), PROVENANCE)
    store.open(snapshot.id)
    unlock(snapshot.path)
    (snapshot.path / "config.json").write_bytes(b"[]")
    with pytest.raises(SnapshotError, match=r"config\.json has changed"):
        store.open(snapshot.id)


def test_files_are_hashed_once_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = SnapshotStore(tmp_path).publish(writer(FILES), PROVENANCE)
    opened: list[str] = []
    real = os.open

    def spy(path: str | Path, *args: int) -> int:
        opened.append(Path(path).name)
        return real(path, *args)

    store = SnapshotStore(tmp_path)
    monkeypatch.setattr(os, "open", spy)
    store.open(published.id)
    assert sorted(opened) == ["config.json", "model.safetensors", "vocab.txt"]
    store.open(published.id)
    assert len(opened) == 3


def test_truncated_missing_and_extra_files_are_refused(tmp_path: Path) -> None:
    snapshot = SnapshotStore(tmp_path).publish(writer(FILES), PROVENANCE)
    unlock(snapshot.path)
    config = snapshot.path / "config.json"

    config.write_bytes(b"{")
    with pytest.raises(SnapshotError, match=r"config\.json has 1 bytes, not 2"):
        SnapshotStore(tmp_path).open(snapshot.id)
    config.unlink()
    with pytest.raises(SnapshotError, match=r"config\.json is missing"):
        SnapshotStore(tmp_path).open(snapshot.id)
    config.write_bytes(FILES["config.json"])
    (snapshot.path / "tokenizer" / "extra.json").write_bytes(b"{}")
    with pytest.raises(SnapshotError, match=r"extra\.json is not listed"):
        SnapshotStore(tmp_path).open(snapshot.id)
    (snapshot.path / "tokenizer" / "extra.json").unlink()
    assert SnapshotStore(tmp_path).open(snapshot.id) == snapshot


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin", "model.pt", "a/optimizer.pkl", "last.ckpt", "modeling.py",
        "model.safetensors.pt", "LICENSE", "manifest.json",
    ],
)  # fmt: skip
def test_files_that_may_hide_code_are_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(SnapshotError) as caught:
        SnapshotStore(tmp_path).publish(writer({**FILES, name: b"x"}), PROVENANCE)
    assert caught.value.where == name
    assert left_in(tmp_path) == []


def test_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "outside.json").write_bytes(b"{}")
    store = SnapshotStore(tmp_path / "store")

    def link_file(folder: Path) -> None:
        (folder / "config.json").symlink_to(tmp_path / "outside.json")

    def link_folder(folder: Path) -> None:
        (folder / "inner").symlink_to(tmp_path)

    for write in (link_file, link_folder):
        with pytest.raises(SnapshotError, match="is a link"):
            store.publish(write, PROVENANCE)
    assert left_in(tmp_path / "store") == []

    snapshot = store.publish(writer(FILES), PROVENANCE)
    unlock(snapshot.path)
    (tmp_path / "outside.json").write_bytes(FILES["config.json"])
    (snapshot.path / "config.json").unlink()
    link_file(snapshot.path)
    with pytest.raises(SnapshotError, match=r"config\.json is a link"):
        store.open(snapshot.id)


@pytest.mark.parametrize(
    "snapshot_id", ["../../etc", "", "ab", "AB" * 32, "ab" * 32 + "\n", "/etc"]
)
def test_only_ids_are_looked_up(tmp_path: Path, snapshot_id: str) -> None:
    with pytest.raises(SnapshotError, match="is no snapshot id"):
        SnapshotStore(tmp_path).open(snapshot_id)


def test_an_unknown_id_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError) as caught:
        SnapshotStore(tmp_path).open("ab" * 32)
    assert caught.value.where == str(tmp_path / "snapshots" / ("ab" * 32))


@pytest.mark.parametrize(
    "path", ["../x.json", "/x.json", "a/../../x.json", "", "a\\x.json", "C:x", "a\nb"]
)
def test_a_manifest_cannot_point_outside(tmp_path: Path, path: str) -> None:
    entry = FileEntry(path=path, size=2, sha256=hashlib.sha256(b"{}").hexdigest())
    content = Manifest(provenance=PROVENANCE, files=(entry,)).to_bytes()
    forged = tmp_path / "snapshots" / hashlib.sha256(content).hexdigest()
    forged.mkdir(parents=True)
    (forged / "manifest.json").write_bytes(content)
    (tmp_path / "snapshots" / "x.json").write_bytes(b"{}")
    with pytest.raises(SnapshotError, match="is no path inside a snapshot"):
        SnapshotStore(tmp_path).open(forged.name)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"schema_version": 1}'])
def test_what_is_no_manifest_is_refused(content: bytes) -> None:
    with pytest.raises(SnapshotError, match="this is no manifest"):
        Manifest.from_bytes(content, where="manifest.json")


def test_a_newer_manifest_asks_for_an_update() -> None:
    with pytest.raises(SnapshotError, match=r"(?s)version 2 is newer than 1.*update Keel"):
        Manifest.from_bytes(b'{"schema_version": 2, "shape": "unknown"}', where="manifest.json")


def test_a_manifest_of_version_1_stays_readable_and_keeps_its_id() -> None:
    content = (Path(__file__).parents[2] / "data" / "manifest-v1.json").read_bytes()
    manifest = Manifest.from_bytes(content, where="manifest-v1.json")
    assert manifest.provenance.round == "reverse"
    assert manifest.files == (FileEntry(path="config.json", size=2, sha256="44" * 32),)
    assert manifest.to_bytes() == content


def full(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def broken(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"half")
    raise ZeroDivisionError


def interrupted(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"half")
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("write", "error"),
    [(full, SnapshotError), (broken, ZeroDivisionError), (interrupted, KeyboardInterrupt)],
)
def test_a_publisher_that_fails_leaves_nothing(
    tmp_path: Path, write: Callable[[Path], None], error: type[BaseException]
) -> None:
    store = SnapshotStore(tmp_path)
    with pytest.raises(error):
        store.publish(write, PROVENANCE)
    assert left_in(tmp_path) == []
    store.publish(writer(FILES), PROVENANCE)


def test_a_full_disk_says_so_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match=r"(?s)the disk is full.*free some space"):
        SnapshotStore(tmp_path).publish(full, PROVENANCE)


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_disk_that_fills_up_after_the_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(SnapshotError, match="the disk is full"):
            SnapshotStore(tmp_path).publish(writer(FILES), PROVENANCE)
    assert left_in(tmp_path) == []


def test_an_empty_snapshot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="nothing was written"):
        SnapshotStore(tmp_path).publish(lambda folder: None, PROVENANCE)


def test_every_file_is_on_the_disk_before_the_name_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    visible_at: list[int] = []
    real_sync, real_rename = os.fsync, os.rename

    def sync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_sync(descriptor)

    def rename(source: Path, target: Path) -> None:
        visible_at.append(len(synced))
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    SnapshotStore(tmp_path).publish(writer(FILES), PROVENANCE)
    before, after = synced[: visible_at[0]], synced[visible_at[0] :]
    assert {"config.json", "model.safetensors", "vocab.txt", "manifest.json", "tokenizer"} <= set(
        before
    )
    assert "snapshots" in after


def test_clean_removes_what_crashed_publishers_left(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    assert store.clean() == 0
    snapshot = store.publish(writer(FILES), PROVENANCE)
    for name in ("one", "two"):
        writer(FILES)(tmp_path / "staging" / name)
    assert store.clean() == 2
    assert not (tmp_path / "staging").exists()
    assert store.open(snapshot.id) == snapshot


@pytest.mark.parametrize(
    ("provenance", "where"),
    [
        (Provenance(kind="model", base="/models/llama"), "provenance.base"),
        (Provenance(kind="model", base="~/llama"), "provenance.base"),
        (Provenance(kind="model", extra={"a": [{"b": "C:\\x"}]}), "provenance.extra.a.0.b"),
        (Provenance(kind="model", extra={"hf_token": "x"}), "provenance.extra.hf_token"),
        (Provenance(kind="model", versions={"api_key": "x"}), "provenance.versions.api_key"),
        (Provenance(kind="model", extra={"note": "by s3cr3t-value!"}), "provenance.extra.note"),
    ],
)
def test_paths_and_secrets_stay_out_of_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provenance: Provenance, where: str
) -> None:
    monkeypatch.setenv("TRACKER_API_KEY", "s3cr3t-value")
    with pytest.raises(UserError) as caught:
        SnapshotStore(tmp_path).publish(writer(FILES), provenance)
    assert caught.value.where == where
    assert "s3cr3t" not in str(caught.value)
    assert left_in(tmp_path) == []


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind is 'model' or 'adapter'"):
        Provenance(kind="checkpoint")  # type: ignore[arg-type]

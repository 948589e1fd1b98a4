"""Stores with a URL: what is there is whole, what is here is a cache that can be thrown away."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest
from pydantic import ValidationError

from align.errors import RunError, SnapshotError, StoreError, UserError
from align.store.ledger.ledger import Ledger
from align.store.mirror import Mirror
from align.store.remote import Remote
from align.store.snapshots.manifest import MANIFEST, Provenance
from align.store.snapshots.snapshots import SnapshotStore
from align.store.store import Store, begun_ledger, known_ledger, open_ledger, open_store
from tests.unit.campaigns import campaign

FILES = {"model.safetensors": b"\x00" * 5000, "config.json": b"{}", "deep/vocab.txt": b"a\nb\n"}
PROVENANCE = Provenance(kind="model", round="first", seeds={"round": 7})


def write(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


class Stopped(BaseException):
    """The process was killed."""


class Dying(Remote):
    """Dies before it has uploaded, or written, so many files."""

    def __init__(self, url: str, after: int) -> None:
        super().__init__(url)
        self._left = after

    def upload(self, local: Path, path: str) -> str:
        self._spend()
        return super().upload(local, path)

    def write(self, path: str, content: bytes) -> None:
        self._spend()
        super().write(path, content)

    def _spend(self) -> None:
        if not self._left:
            raise Stopped
        self._left -= 1


# Snapshots


def test_another_machine_opens_what_was_published(tmp_path: Path, url: str) -> None:
    published = SnapshotStore(tmp_path / "one", Remote(url)).publish(write, PROVENANCE)
    opened = SnapshotStore(tmp_path / "other", Remote(url)).open(published.id)
    assert (opened.id, opened.manifest) == (published.id, published.manifest)
    assert opened.path.is_relative_to(tmp_path / "other")
    assert {name: (opened.path / name).read_bytes() for name in FILES} == FILES
    # From now on it is here: nothing is asked of the far side, and no other hand can change it.
    assert SnapshotStore(tmp_path / "other").open(published.id) == opened
    assert not opened.path.stat().st_mode & 0o222


def test_a_url_changes_no_id(tmp_path: Path, url: str) -> None:
    here = SnapshotStore(tmp_path / "one").publish(write, PROVENANCE)
    assert SnapshotStore(tmp_path / "two", Remote(url)).publish(write, PROVENANCE).id == here.id


def test_what_is_in_the_cache_only_is_published_again(tmp_path: Path, url: str) -> None:
    local = SnapshotStore(tmp_path / "one").publish(write, PROVENANCE)
    SnapshotStore(tmp_path / "one", Remote(url)).publish(write, PROVENANCE)
    assert SnapshotStore(tmp_path / "other", Remote(url)).open(local.id).id == local.id


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_flipped_byte_is_refused_and_its_file_named(tmp_path: Path, url: str, name: str) -> None:
    published = SnapshotStore(tmp_path / "one", Remote(url)).publish(write, PROVENANCE)
    remote, path = Remote(url), f"snapshots/{published.id}/{name}"
    content = remote.read(path) or b""
    remote.write(path, bytes([content[0] ^ 1]) + content[1:])
    other = SnapshotStore(tmp_path / "other", remote)
    with pytest.raises(SnapshotError, match=Path(name).name) as refused:
        other.open(published.id)
    assert refused.value.where == f"{url}/{path}"
    assert not list((tmp_path / "other/snapshots").iterdir())
    assert not (tmp_path / "other/staging").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_file_is_refused(tmp_path: Path, url: str, name: str) -> None:
    published = SnapshotStore(tmp_path / "one", Remote(url)).publish(write, PROVENANCE)
    remote, path = Remote(url), f"snapshots/{published.id}/{name}"
    remote.write(path, FILES[name][:-1])
    with pytest.raises(SnapshotError, match=f"has {len(FILES[name]) - 1} bytes"):
        SnapshotStore(tmp_path / "other", remote).open(published.id)
    remote.remove([path])
    with pytest.raises(SnapshotError, match="is missing"):
        SnapshotStore(tmp_path / "other", remote).open(published.id)


@pytest.mark.parametrize("after", range(len(FILES) + 1))
def test_a_publication_that_dies_leaves_nothing_that_loads(
    tmp_path: Path, url: str, after: int
) -> None:
    with pytest.raises(Stopped):
        SnapshotStore(tmp_path / "one", Dying(url, after)).publish(write, PROVENANCE)
    whole = SnapshotStore(tmp_path / "two").publish(write, PROVENANCE)
    other = SnapshotStore(tmp_path / "other", Remote(url))
    with pytest.raises(SnapshotError, match="no snapshot"):
        other.open(whole.id)
    assert other.clean() == bool(after)
    assert Remote(url).versions("snapshots") == {}
    # The machine that died finds its own copy and sends it.
    again = SnapshotStore(tmp_path / "one", Remote(url)).publish(write, PROVENANCE)
    assert other.open(again.id).id == whole.id
    assert other.clean() == 0


def test_what_arrives_changed_is_not_published(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote(url)
    monkeypatch.setattr(remote, "digest", lambda path: (2, "0" * 64))
    with pytest.raises(SnapshotError, match="did not arrive as it was sent"):
        SnapshotStore(tmp_path / "one", remote).publish(write, PROVENANCE)
    assert not any(path.endswith(MANIFEST) for path in Remote(url).versions("snapshots"))


# Records


def mirror(folder: Path, url: str) -> Mirror:
    return Mirror(folder, Remote(url))


def put(folder: Path, path: str, text: str) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text)


def test_records_go_there_and_come_back(tmp_path: Path, url: str) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    put(one, "evaluations/ab/general.parquet", "items")
    put(one, "rounds/00-first/attempt-1/metrics.jsonl", "{}\n")
    put(one, "replay/ab.jsonl", "prompts")
    for stays in ("inbox/token", "ledger.db", "snapshots/x/config.json", "replay/.ab.jsonl.123"):
        put(one, stays, "mine")
    mirror(one, url).push()
    mirror(other, url).pull()
    arrived = {p.relative_to(other).as_posix() for p in other.rglob("*") if p.is_file()}
    assert arrived == {
        ".mirror.json",
        "evaluations/ab/general.parquet",
        "rounds/00-first/attempt-1/metrics.jsonl",
        "replay/ab.jsonl",
    }


class Counting(Remote):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.moved: list[str] = []

    def upload(self, local: Path, path: str) -> str:
        self.moved.append(f"> {path}")
        return super().upload(local, path)

    def download(self, path: str, local: Path) -> None:
        self.moved.append(f"< {path}")
        super().download(path, local)


def test_only_what_changed_is_copied(tmp_path: Path, url: str) -> None:
    here, there = Counting(url), Counting(url)
    one, other = Mirror(tmp_path / "one", here), Mirror(tmp_path / "other", there)
    put(tmp_path / "one", "replay/a.jsonl", "a")
    put(tmp_path / "one", "replay/b.jsonl", "b")
    one.push()
    one.push()
    one.pull()
    other.pull()
    put(tmp_path / "other", "replay/a.jsonl", "changed")
    other.pull()
    other.push()
    one.pull()
    assert here.moved == ["> replay/a.jsonl", "> replay/b.jsonl", "< replay/a.jsonl"]
    assert there.moved == ["< replay/a.jsonl", "< replay/b.jsonl", "> replay/a.jsonl"]
    assert (tmp_path / "one/replay/a.jsonl").read_text() == "changed"


def test_a_lost_index_copies_anew_and_loses_nothing(tmp_path: Path, url: str) -> None:
    put(tmp_path / "one", "replay/a.jsonl", "a")
    mirror(tmp_path / "one", url).push()
    (tmp_path / "one/.mirror.json").write_text("{")
    put(tmp_path / "one", "replay/b.jsonl", "b")
    mirror(tmp_path / "one", url).pull()
    mirror(tmp_path / "one", url).push()
    mirror(tmp_path / "other", url).pull()
    assert sorted(p.name for p in (tmp_path / "other/replay").iterdir()) == ["a.jsonl", "b.jsonl"]


CHECKPOINT = "rounds/00-first/checkpoint/step-00000015"


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_checkpoint_comes_whole_or_not_at_all(tmp_path: Path, url: str, after: int) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    put(one, f"{CHECKPOINT}/checkpoint.json", "{}")
    put(one, f"{CHECKPOINT}/rank-0.safetensors", "w")
    put(one, "rounds/00-first/checkpoint/staging/rank-0.safetensors", "half")
    if after < 2:
        with pytest.raises(Stopped):
            Mirror(one, Dying(url, after)).push()
    else:
        mirror(one, url).push()
    mirror(other, url).pull(checkpoints=True)
    arrived = sorted(p.name for p in (other / "rounds").rglob("*") if p.is_file())
    assert arrived == (["checkpoint.json", "rank-0.safetensors"] if after == 2 else [])


def test_who_only_reads_takes_no_checkpoint(tmp_path: Path, url: str) -> None:
    put(tmp_path / "one", f"{CHECKPOINT}/checkpoint.json", "{}")
    mirror(tmp_path / "one", url).push()
    mirror(tmp_path / "other", url).pull()
    assert not (tmp_path / "other/rounds").exists()


def test_a_checkpoint_that_was_removed_is_removed_there(tmp_path: Path, url: str) -> None:
    one = tmp_path / "one"
    put(one, f"{CHECKPOINT}/checkpoint.json", "{}")
    put(one, "rounds/00-first/attempt-1/metrics.jsonl", "{}\n")
    mirror(one, url).push()
    shutil.rmtree(one / "rounds/00-first/checkpoint")
    mirror(one, url).trim(one / "rounds/00-first/checkpoint")
    assert list(Remote(url).versions("rounds")) == ["rounds/00-first/attempt-1/metrics.jsonl"]


def test_a_file_that_never_arrives_whole(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "one", "replay/a.jsonl", "whole")
    mirror(tmp_path / "one", url).push()
    remote = Remote(url)
    monkeypatch.setattr(remote, "download", lambda path, local: local.write_text("who"))
    with pytest.raises(RunError, match="did not arrive whole"):
        Mirror(tmp_path / "other", remote).pull()
    assert list((tmp_path / "other/replay").iterdir()) == []


def test_a_local_store_has_one_side(tmp_path: Path) -> None:
    store = open_store(campaign(tmp_path))
    store.pull(checkpoints=True)
    store.copy_rewritten([tmp_path / "rounds"])
    store.forget_checkpoints(0, "first")
    assert not store.restored("replay/a.jsonl", "0")
    assert not store.is_remote
    assert {path.name for path in store.folder.iterdir()} <= {
        "ledger.db", "ledger.db-shm", "ledger.db-wal",
    }  # fmt: skip


def test_what_is_recorded_is_copied_before_the_ledger_names_it(tmp_path: Path) -> None:
    config = campaign(
        tmp_path,
        store=f"file://{tmp_path / 'far'}",
        cache=str(tmp_path / "cache"),
        ledger=f"sqlite:///{tmp_path / 'ledger.db'}",
    )
    store = open_store(config)
    path = store.paths.replay("a" * 64)
    put(store.folder, store.paths.relative(path), "whole")
    store.files.record([path])
    assert (tmp_path / "far" / store.paths.relative(path)).read_text() == "whole"
    path.unlink()
    sha256 = store.files.hash_of(path) or ""
    assert store.restored(store.paths.relative(path), sha256)
    assert not store.restored(store.paths.relative(path), "0" * 64)


def test_an_unreachable_url_leaves_the_ledger_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote(f"file://{tmp_path / 'far'}")
    store = Store(tmp_path, Ledger(f"sqlite:///{tmp_path / 'l.db'}"), Mirror(tmp_path, remote))
    put(tmp_path, "replay/a.jsonl", "whole")

    def fail(local: Path, path: str) -> str:
        raise RunError("the store could not be used")

    monkeypatch.setattr(remote, "upload", fail)
    with pytest.raises(RunError, match="could not be used"):
        store.files.record([tmp_path / "replay/a.jsonl"])
    assert store.files.hashes() == {}


# What a campaign file may say


def places(folder: Path, **changes: Any) -> Any:
    return campaign(folder, **{"cache": str(folder / "cache"), **changes})


def test_where_a_campaign_lies_is_no_part_of_what_it_is(tmp_path: Path) -> None:
    here = campaign(tmp_path)
    there = places(
        tmp_path,
        store="s3://bucket/prefix",
        store_options={"endpoint_url": "http://127.0.0.1:9"},
        ledger="postgresql://keel@localhost/keel",
    )
    assert there.hash() == here.hash()
    assert not {"store", "store_options", "cache", "ledger"} & there.content().keys()
    assert there.folder == tmp_path / "cache"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"store": "s3://bucket"}, "needs a ledger of its own"),
        ({"store": "memory://x", "ledger": "sqlite:///{cache}/ledger.db"}, "lies in the cache"),
        ({"store": "s3://id:hush@bucket", "ledger": "env:URL"}, "store holds credentials"),
        (
            {"store": "s3://b", "ledger": "env:URL", "store_options": {"secret": "hush"}},
            "store_options.secret looks like a secret",
        ),
        (
            {"store": "s3://b", "ledger": "env:URL",
             "store_options": {"client_kwargs": {"aws_session_token": "hush"}}},
            "store_options.client_kwargs.aws_session_token looks like a secret",
        ),
        ({"store": "local"}, "cache is for a store with a URL"),
        ({"store": "s3://b", "ledger": "postgresql://a:hush@h/d"}, "ledger holds a password"),
        ({"store": "s3://b", "ledger": "postgresql://h/d?password=hush"}, "ledger holds a password"),
        ({"store": "s3://b", "ledger": "env:"}, "followed by the name of a variable"),
    ],
)  # fmt: skip
def test_places_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    text = json.dumps(changes).replace("{cache}", str(tmp_path / "cache"))
    with pytest.raises(ValidationError, match=message) as refused:
        places(tmp_path, **json.loads(text))
    assert "hush" not in refused.value.errors()[0]["msg"]


def test_the_ledgers_url_may_come_from_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = campaign(tmp_path, ledger="env:KEEL_LEDGER")
    with pytest.raises(UserError, match="KEEL_LEDGER should hold the ledger's URL"):
        open_ledger(config)
    monkeypatch.setenv("KEEL_LEDGER", f"sqlite:///{tmp_path / 'other.db'}")
    assert known_ledger(config) is None
    assert not (tmp_path / "other.db").exists()
    open_ledger(config).open_campaign("small", config.content(), config.hash())
    found = known_ledger(config)
    assert found is not None
    assert len(found.rounds()) == 2
    assert begun_ledger(config) is None, "it has no base yet"


# What goes wrong


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(UserError, match=r"keel-align\[s3\]"):
        Remote("s3://bucket")


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r"keel-align\[postgres\]"):
        Ledger("postgresql://keel@localhost/keel")


@pytest.mark.parametrize("bad", ["mysql://u:hush@h/d", "postgresql://u:hush@h:port/d"])
def test_no_message_shows_a_password(bad: str) -> None:
    with pytest.raises(UserError) as refused:
        Ledger(bad)
    assert "hush" not in str(refused.value)


def test_an_unknown_kind_of_store() -> None:
    with pytest.raises(UserError, match="cannot be opened"):
        Remote("nosuch://bucket")


def test_a_far_side_that_fails_is_no_defect(tmp_path: Path) -> None:
    (tmp_path / "far").write_text("a file where a folder should be")
    store = SnapshotStore(tmp_path / "one", Remote(f"file://{tmp_path / 'far'}"))
    with pytest.raises(RunError, match="the store could not be used"):
        store.publish(write, PROVENANCE)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(StoreError, match="cannot be reached"):
        Ledger("postgresql://keel@127.0.0.1:9/keel")

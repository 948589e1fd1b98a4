"""A crash before every durable operation of a store: an exception, or a power cut that drops what was not
fsynced. `benchmarks.faults` does the same to whole campaigns, and with kills."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from align.errors import LedgerLost
from align.gate.evidence import stored_evidence
from align.store.backups.ledger_backups import LedgerBackups, back_up, ledger_file
from align.store.backups.lost import read_backup
from align.store.backups.restore import restore_ledger
from align.store.durable import write_atomic
from align.store.snapshots.snapshots import Provenance, SnapshotStore
from benchmarks.fault_disk import WatchedDisk
from tests.unit.stores import GOOD, made


class Crash(BaseException):
    """The end of the program that is simulated."""


def stop() -> None:
    raise Crash


def crashes(
    folder: Path, begin: Callable[[Path], None], act: Callable[[Path], None]
) -> list[tuple[str, Path]]:
    """Run ``act`` with a crash before every operation; return the store as each crash leaves it, by name.

    The last ones are those of a power cut after all of it.
    """
    (folder / "whole").mkdir()
    begin(folder / "whole")
    counted = WatchedDisk(folder=folder / "whole", kept=folder / "kept")
    with counted.watch():
        act(folder / "whole")
    left = []
    for number in range(len(counted.done) + 1):
        home, cut = folder / f"exception-{number}", folder / f"power-{number}"
        home.mkdir()
        begin(home)
        disk = WatchedDisk(folder=home, kept=folder / f"kept-{number}", crash_at=number, crash=stop)
        try:
            with disk.watch():
                act(home)
        except Crash:
            left.append((f"exception before {counted.done[number]}", home))
        disk.survivors(cut)
        left.append((f"power cut at {number}", cut))
        shutil.rmtree(disk.kept)
    return left


def test_a_replaced_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    def begin(home: Path) -> None:
        write_atomic(home / "kept.json", b"old")

    def act(home: Path) -> None:
        write_atomic(home / "kept.json", b"new")

    left = crashes(tmp_path, begin, act)
    assert {(home / "kept.json").read_bytes() for _, home in left} == {b"old", b"new"}
    assert (left[-1][1] / "kept.json").read_bytes() == b"new"


def test_a_power_cut_drops_what_was_not_fsynced(tmp_path: Path) -> None:
    """The simulation itself: without fsync nothing of a file is left, or an empty one."""

    def act(home: Path) -> None:
        (home / "torn.json").write_bytes(b"new")
        (home / "torn.json").rename(home / "kept.json")

    left = crashes(tmp_path, lambda home: None, act)
    assert not (left[-1][1] / "kept.json").exists()


def test_a_snapshot_is_whole_or_not_there(tmp_path: Path) -> None:
    def act(home: Path) -> None:
        def write(folder: Path) -> None:
            (folder / "config.json").write_text("{}")
            (folder / "model.safetensors").write_bytes(bytes(1000))

        SnapshotStore(home).publish(write, Provenance(kind="model"))

    left = crashes(tmp_path, lambda home: None, act)
    for what, home in left:
        store = SnapshotStore(home)
        for path in (home / "snapshots").glob("*"):
            assert store.open(path.name).manifest.blob_bytes == 1002, what
        store.clean()
        act(home)
    assert len(left) > 10


def test_a_backup_is_whole_or_not_there_and_the_ledger_stays(tmp_path: Path) -> None:
    config = made(tmp_path / "made", GOOD).config
    source = tmp_path / "made/store"

    def begin(home: Path) -> None:
        shutil.copytree(source, home, dirs_exist_ok=True)

    def act(home: Path) -> None:
        assert back_up(config.model_copy(update={"store": str(home)})) is None

    for what, home in crashes(tmp_path, begin, act):
        ledger = ledger_file(config.model_copy(update={"store": str(home)}))
        assert ledger is not None
        for path in LedgerBackups(ledger).files():
            assert read_backup(path).decided == ("round0",), what
        assert read_backup(ledger).decided == ("round0",), what


def test_a_restore_that_crashes_is_done_again(tmp_path: Path) -> None:
    config = made(tmp_path / "made", GOOD).config
    back_up(config)
    source = tmp_path / "made/store"

    def begin(home: Path) -> None:
        shutil.copytree(source, home, dirs_exist_ok=True)
        (home / "ledger.db").write_bytes((home / "ledger.db").read_bytes()[:9000])

    def act(home: Path) -> None:
        restore_ledger(config.model_copy(update={"store": str(home)}))

    for what, home in crashes(tmp_path, begin, act):
        there = config.model_copy(update={"store": str(home)})
        try:
            states = [record.state for record in stored_evidence(there).ledger.rounds()]
        except LedgerLost:
            restore_ledger(there)
            states = [record.state for record in stored_evidence(there).ledger.rounds()]
        assert states == ["accepted"], what

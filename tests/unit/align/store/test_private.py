"""Files of a store that only its user can read."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from align.config.store import StoreSettings
from align.schedule.inbox.drop import make_drop, sweep
from align.schedule.inbox.inbox import Inbox
from align.store.database.private import close_to_others
from align.store.ledger.ledger import Ledger
from align.store.store import open_ledger, open_store
from tests.unit.inboxes import TASTE, pair, settled


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_a_new_store_is_its_users_alone(tmp_path: Path) -> None:
    store = open_store(
        StoreSettings(name="fed", store=str(tmp_path / "runs" / "store"), store_options={})
    )
    with store.ledger.database.write():
        files = sorted(store.folder.glob("ledger.db*"))
        assert len(files) == 3, "the database, its log and its index"
        assert {mode(file) for file in files} == {0o600}
    assert mode(store.folder) == 0o700
    make_drop(store.paths.inbox.folder, {"taste": TASTE})
    assert mode(store.paths.inbox.folder) == 0o700


def test_an_older_store_is_closed_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "store"
    settings = StoreSettings(name="fed", store=str(folder), store_options={})
    store = open_store(settings)
    store.paths.snapshots.mkdir()
    store.ledger.database.engine.dispose()
    folder.chmod(0o755)
    store.paths.ledger.chmod(0o664)
    with caplog.at_level(logging.WARNING):
        open_ledger(settings)
    assert (mode(folder), mode(store.paths.ledger)) == (0o700, 0o600)
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder} was open to other users and now is not",
        f"{store.paths.ledger} was open to other users and now is not",
    ]


def test_a_folder_of_others_stays_as_it_is(tmp_path: Path) -> None:
    """A ledger may lie beside other files, and in a folder that many share."""
    tmp_path.chmod(0o755)
    Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    link = tmp_path / "link"
    link.symlink_to(shared)
    close_to_others(shared)
    close_to_others(link)
    close_to_others(tmp_path / "missing")
    assert (mode(tmp_path), mode(shared)) == (0o755, 0o1777)
    assert not (tmp_path / "missing").exists()


def test_dropped_files_are_put_away_closed_and_links_are_left(tmp_path: Path) -> None:
    import json

    inbox = Inbox(Ledger(f"sqlite:///{tmp_path / 'store' / 'ledger.db'}").database)
    folder = tmp_path / "store" / "inbox"
    drop = make_drop(folder, {"taste": TASTE}) / "taste"
    secret = tmp_path / "secret.jsonl"
    for file in (secret, drop / "rows.jsonl"):
        file.write_text(json.dumps(pair(1)) + "\n")
        file.chmod(0o644)
        settled(file)
    (drop / "link.jsonl").symlink_to(secret)
    (intake,) = sweep(folder, inbox, {"taste": TASTE})
    assert (intake.file, intake.stored) == ("rows.jsonl", 1)
    put_away = [file for file in (folder / "done").rglob("*") if file.suffix == ".jsonl"]
    assert [mode(file) for file in put_away] == [0o600]


def test_a_lock_of_this_process_outlives_another_opening(tmp_path: Path) -> None:
    """POSIX drops a process's locks on a file as soon as it closes any descriptor of it."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    begin = f"""
import sqlite3
sqlite3.connect({str(tmp_path / "ledger.db")!r}, timeout=0).execute("BEGIN IMMEDIATE")
"""
    with Ledger(url).database.write():
        Ledger(url)
        for file in tmp_path.glob("ledger.db*"):
            close_to_others(file)
        another = subprocess.run([sys.executable, "-c", begin], capture_output=True, text=True)
    assert "database is locked" in another.stderr

"""The database's connections: which are kept, when they are opened anew, and what their closing prints."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, insert, select
from sqlalchemy.pool import QueuePool

from align.store.database.connections import keeping_log
from align.store.database.database import Database, holds_ledger
from align.store.ledger.tables.core import store_schema


class Opened:
    """A database and the number of connections that were opened to it since."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "ledger.sqlite"
        self.database = Database(f"sqlite:///{self.file}")
        self.count = 0
        event.listen(self.database.engine, "connect", self._count)

    def _count(self, *_: Any) -> None:
        self.count += 1

    def versions(self) -> list[int]:
        with self.database.read() as connection:
            return list(connection.scalars(select(store_schema.c.version)))


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    return Opened(tmp_path)


def log(file: Path) -> Path:
    return file.with_name(f"{file.name}-wal")


def test_transactions_after_each_other_share_a_connection(opened: Opened) -> None:
    for _ in range(3):
        assert opened.versions() == [1]
        with opened.database.write() as connection:
            connection.execute(store_schema.update().values(version=1))
    assert opened.count == 0


def test_transactions_at_the_same_time_have_connections_of_their_own(opened: Opened) -> None:
    """A view stays as it was when it began, though the same process writes meanwhile."""
    with opened.database.read() as reader:
        assert len(reader.execute(select(store_schema)).all()) == 1
        writer = threading.Thread(target=write_another, args=[opened.database])
        writer.start()
        writer.join()
        assert len(reader.execute(select(store_schema)).all()) == 1
    assert opened.versions() == [1, 1]
    assert opened.count == 1


def write_another(database: Database) -> None:
    with database.write() as connection:
        connection.execute(insert(store_schema).values(version=1))


def test_a_transaction_that_failed_leaves_nothing_to_the_next(opened: Opened) -> None:
    with pytest.raises(KeyboardInterrupt), opened.database.write() as connection:
        connection.execute(insert(store_schema).values(version=1))
        raise KeyboardInterrupt
    assert opened.versions() == [1]


def test_a_forked_process_opens_its_own(opened: Opened) -> None:
    """The child writes and ends like a process; neither takes the other's connection or log away."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            write_another(opened.database)
            opened.database.engine.dispose()
            os._exit(opened.count)
        os._exit(100)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert opened.versions() == [1, 1]
    assert opened.count == 0
    write_another(opened.database)
    assert opened.versions() == [1, 1, 1]


def test_a_replaced_file_is_read_anew(opened: Opened, tmp_path: Path) -> None:
    Database(f"sqlite:///{tmp_path / 'backup.sqlite'}")
    write_another(opened.database)
    for name in ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "backup.sqlite", opened.file)
    assert opened.versions() == [1]
    assert opened.count == 1


def test_a_copy_of_the_file_alone_has_every_write(opened: Opened, tmp_path: Path) -> None:
    """With the connection still open; but not while writes come by the thousand."""
    write_another(opened.database)
    shutil.copy(opened.file, tmp_path / "copy.sqlite")
    assert rows_of(tmp_path / "copy.sqlite") == 2
    with keeping_log(opened.database.engine):
        write_another(opened.database)
        assert rows_of(opened.file) == 3
        shutil.copy(opened.file, tmp_path / "early.sqlite")
        assert rows_of(tmp_path / "early.sqlite") == 2
    shutil.copy(opened.file, tmp_path / "late.sqlite")
    assert rows_of(tmp_path / "late.sqlite") == 3


def rows_of(file: Path) -> int:
    with closing(sqlite3.connect(file)) as connection:
        return int(connection.execute("SELECT count(*) FROM store_schema").fetchone()[0])


def test_nothing_is_left_open_beside_a_database_that_is_gone(opened: Opened) -> None:
    write_another(opened.database)
    assert log(opened.file).exists()
    assert holds_ledger(f"sqlite:///{opened.file}")
    del opened.database
    assert not log(opened.file).exists()


@pytest.mark.parametrize(("error", "reported"), [(KeyboardInterrupt, False), (OSError, True)])
def test_ctrl_c_while_a_connection_closes_prints_nothing(
    tmp_path: Path,
    error: type[BaseException],
    reported: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SQLAlchemy logs what closing raised; only Ctrl-C is somebody's wish."""
    pool = create_engine(f"sqlite:///{tmp_path / 'any.db'}", poolclass=QueuePool).pool
    connection = pool.connect()

    def interrupted(_: Any) -> None:
        raise error

    for name in ("do_rollback", "do_terminate", "do_close"):
        monkeypatch.setattr(pool._dialect, name, interrupted)
    with suppress(KeyboardInterrupt):
        connection.close()
    assert bool(caplog.records) is reported

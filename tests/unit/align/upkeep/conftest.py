"""Folder in memory for stores that write very many small files durably."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.unit.ledgers import RAM


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Empty folder that goes after the test."""
    with TemporaryDirectory(dir=RAM) as folder:
        yield Path(folder)

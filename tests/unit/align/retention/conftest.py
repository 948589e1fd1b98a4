"""Fixture that the tests of retention methods share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.align.retention.trainings import save_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models of the same shape, by name."""
    return save_models(tmp_path_factory.mktemp("models"))

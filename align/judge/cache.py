"""Measurements kept from one judgement to the next, so that an incumbent is measured once.

    ROOT/<model and settings>/<suite>-<hash>.parquet     items, as `ItemResults` writes them
    ROOT/<model and settings>/<suite>-<hash>.sha256      hash of that file

A file that is missing, damaged or edited counts as not measured. Removing the folder is always safe.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from align.gate.measurement.evaluate import ItemResults
from align.gate.measurement.reuse import load_with_texts
from align.gate.suites.suites import Suite
from align.judge.models.base import JudgedModel
from align.judge.models.digest import combined
from align.store.durable import digest_of, write_atomic
from rollouts.errors import RunError

DIGITS = 32
"""Digits of a hash in the name of a folder or file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurements:
    """Stored results of one model under one set of engine settings."""

    folder: Path
    snapshot: str

    def load(self, suite: Suite) -> ItemResults | None:
        """Return the results on a suite; None if they have to be measured."""
        file, seal = self._file(suite), self._seal(suite)
        try:
            if seal.read_text("ascii").strip() != digest_of(file)[1]:
                return None
            results = load_with_texts(file)
        except (OSError, UnicodeDecodeError, RunError):
            return None
        key = (results.suite, results.suite_hash, results.snapshot)
        return results if key == (suite.name, suite.hash, self.snapshot) else None

    def save(self, suite: Suite, results: ItemResults) -> None:
        """Keep results; a reader sees them whole or not at all."""
        file, seal = self._file(suite), self._seal(suite)
        seal.unlink(missing_ok=True)
        results.save(file)
        write_atomic(seal, f"{digest_of(file)[1]}\n".encode("ascii"))

    def _file(self, suite: Suite) -> Path:
        return self.folder / f"{suite.name}-{suite.hash[:DIGITS]}.parquet"

    def _seal(self, suite: Suite) -> Path:
        return self._file(suite).with_suffix(".sha256")


def measurements_of(root: Path, model: JudgedModel) -> Measurements:
    """Return the place of a model's measurements below ``root``."""
    folder = root / combined(model.id, model.settings or "")[:DIGITS]
    return Measurements(folder=folder, snapshot=model.id)


def default_root() -> Path:
    """Return the folder of measurements unless another is named: the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME", "").strip() or "~/.cache"
    return Path(base).expanduser() / "keel" / "judge"

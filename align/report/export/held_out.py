"""What suites were found to have in common with what is trained on, as the last run wrote it down."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter

from align.gate.overlap import Overlap
from align.store.paths import StorePaths

_OVERLAPS = TypeAdapter(tuple[Overlap, ...])


def overlaps_of(folder: Path) -> tuple[Overlap, ...]:
    """The record of a store; none where nothing was compared yet, or the record is damaged."""
    try:
        return _OVERLAPS.validate_json(StorePaths(folder).overlaps.read_bytes())
    except (OSError, ValueError):
        return ()

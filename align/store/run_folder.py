"""Files of a round's folder that steps write: one line of metrics for each learner step."""

from __future__ import annotations

import json
import math
from pathlib import Path


def steps_of(folder: Path, repair: str = "") -> dict[int, dict[str, float]]:
    """Finite metrics of every learner step of a round, or of one of its repairs.

    An attempt that went on from a checkpoint replaces the steps that it did again. A line that is
    still being written is left out.
    """
    attempts = sorted(
        folder.glob("attempt-*"), key=lambda path: int(path.name.removeprefix("attempt-"))
    )
    steps: dict[int, dict[str, float]] = {}
    for attempt in attempts:
        steps |= steps_in(attempt / repair / "metrics.jsonl")
    return dict(sorted(steps.items()))


def steps_in(path: Path) -> dict[int, dict[str, float]]:
    """Finite metrics of the learner steps in one file; none if it is missing."""
    steps: dict[int, dict[str, float]] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            values = json.loads(line)
            step = int(values.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        steps[step] = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
    return steps

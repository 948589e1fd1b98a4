"""Wall time of one attempt at a round as it lies beside its metrics, in ``times.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from align.store.durable import write_atomic
from align.store.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptTimes:
    """Seconds by phase."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds of the attempt itself, repairs included."""
    before: Mapping[str, float] = field(default_factory=dict)
    """Seconds of the run between its start, or its last round, and this attempt."""

    def save(self, folder: Path, *, flush: bool = True) -> None:
        """Write the file into an attempt's folder; a reader sees the old one or the new one.

        Args:
            flush: False after a step, whose time a power cut may take.
        """
        content = json.dumps(asdict(self), sort_keys=True) + "\n"
        write_atomic(RunFolder(folder).times, content.encode(), flush=flush)

    @classmethod
    def load(cls, folder: Path) -> AttemptTimes | None:
        """Read what `save` wrote; None if the attempt has no such file, or a damaged one."""
        try:
            content = json.loads(RunFolder(folder).times.read_text())
            return cls(seconds=_finite(content["seconds"]), before=_finite(content["before"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def _finite(seconds: Mapping[str, float]) -> dict[str, float]:
    values = {str(name): float(value) for name, value in seconds.items()}
    return {name: value for name, value in values.items() if math.isfinite(value) and value >= 0}

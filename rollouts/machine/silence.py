"""Long waits that say what they wait for, before anything is done about it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

SILENCE_S = 60.0
"""Seconds of a wait that need no explanation, where nobody states others."""


@dataclass(kw_only=True, slots=True)
class Silence:
    """Time without a sign of whatever is waited for."""

    after_s: float = SILENCE_S
    """Seconds after which it is worth a line; the next line comes when it has lasted twice as long."""
    clock: Callable[[], float] = time.monotonic
    _began: float = 0.0
    _due_s: float = field(default=0.0)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Take note of a sign."""
        self._began, self._due_s = self.clock(), self.after_s

    @property
    def lasted_s(self) -> float:
        """Seconds since the last sign."""
        return self.clock() - self._began

    @property
    def left_s(self) -> float:
        """Seconds until the next line is due."""
        return max(0.0, self._due_s - self.lasted_s)

    def is_due(self) -> bool:
        """Tell if a line is due now; the next one is due when the silence is twice as long."""
        if self.lasted_s < self._due_s:
            return False
        self._due_s = 2 * self.lasted_s
        return True

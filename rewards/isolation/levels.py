"""Isolation of one reward: its level, its deadlines and the resources it may use.

    inline    in this process: fastest, trusted, without deadlines
    process   in worker processes: deadlines, no tokens, limits; hurts nothing by accident
    sandbox   as process, and without network, without files, without other processes

``auto`` is the level that `rewards.registry.RewardSpec` states for a reward that ships with Keel, and at
least process for every other. A level that this machine cannot give is an error before the run; nothing is
ever run under a weaker one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rollouts.errors import UserError

Level = Literal["inline", "process", "sandbox"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""All levels, the weakest first."""

DEADLINE_S = 120.0
"""Seconds for one batch, where the campaign names no other deadline."""
MEMORY_GIB = 4.0
"""Address space of one worker, where the campaign names no other."""

NEEDS_A_PROCESS = (
    "deadline_s",
    "sample_deadline_s",
    "workers",
    "memory_gib",
    "environment",
    "files",
    "user",
)
"""Settings that mean nothing inline."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Isolation:
    """Isolation of one part of a rubric."""

    level: Level = "inline"
    deadline_s: float = DEADLINE_S
    """Seconds for one batch, all repeats included. One call gets half of what is left of it."""
    sample_deadline_s: float | None = None
    """Seconds for one sample; set, a reward is called with one sample at a time."""
    workers: int = 1
    """Processes that share a batch."""
    memory_gib: float | None = MEMORY_GIB
    """Address space of a worker; None: no limit."""
    environment: tuple[str, ...] = ()
    """Names of variables a worker sees besides the harmless ones."""
    files: tuple[str, ...] = ()
    """Files and folders that a sandbox shows besides the reward's code."""
    user: str | None = None
    """User that workers without a sandbox become; None: see `rewards.isolation.user`."""

    def line(self, part: str) -> str:
        """Describe the isolation in the line that a run prints at its start."""
        if self.level == "inline":
            return f"reward {part}: inline (in this process, trusted, no deadline)"
        limits = [
            f"{self.workers} worker{'s' if self.workers > 1 else ''}",
            f"{self.deadline_s:g} s a batch",
        ]
        if self.sample_deadline_s is not None:
            limits.append(f"{self.sample_deadline_s:g} s a sample")
        limits.append("any memory" if self.memory_gib is None else f"{self.memory_gib:g} GiB")
        if self.user:
            limits.append(f"as {self.user}")
        if self.environment:
            limits.append("sees " + ", ".join(self.environment))
        if self.files and self.level == "sandbox":
            limits.append("reads " + ", ".join(self.files))
        return f"reward {part}: {self.level} ({', '.join(limits)})"


def isolation_of(spec: Any, auto: Level, where: str | None = None) -> Isolation:
    """Read the settings of a reward's configuration; settings that it lacks have the defaults.

    Args:
        auto: level of the reward where its configuration names none.
    """
    stated: Level | Literal["auto"] = getattr(spec, "isolation", "auto")
    level = auto if stated == "auto" else stated
    values = {name: getattr(spec, name, None) for name in NEEDS_A_PROCESS}
    settings: dict[str, Any] = {name: v for name, v in values.items() if v not in (None, ())}
    if level == "inline":
        if settings:
            raise UserError(
                f"reward {spec.name!r} runs inline, where {next(iter(settings))} means nothing",
                where=where,
                remedy="add isolation: process to it, or remove the setting",
            )
        return Isolation()
    if level == "sandbox" and "user" in settings:
        raise UserError(
            f"reward {spec.name!r} runs in a sandbox, where user means nothing",
            where=where,
            cause="under root a sandbox is of the user nobody",
            remedy="remove user, or take isolation: process",
        )
    if math.isinf(settings.get("memory_gib", MEMORY_GIB)):
        settings["memory_gib"] = None
    return Isolation(level=level, **settings)

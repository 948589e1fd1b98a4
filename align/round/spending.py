"""Cost of a round, and the part of it that went to retention instead of to what was new."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

NEW = "new"
RETENTION = ("past", "general")
"""Sources of prompts that hold the policy to what it was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """One cost, by what it was spent on."""

    new: float
    retention: float

    @property
    def share(self) -> float | None:
        """Share of retention; None where nothing was spent."""
        total = self.new + self.retention
        return self.retention / total if total else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """Rollouts, tokens and seconds that the learner steps of a round took."""

    rollouts: Split
    """Completions that were sampled."""
    tokens: Split
    """Completion tokens that were learnt from, or held to an anchor."""
    seconds: Split
    """Seconds in the learner's updates; each is divided in the ratio of its tokens, since they are one
    pass."""


def spent(steps: Iterable[Mapping[str, float]]) -> Spent:
    """Sum the costs over a round's steps; a metric that a step lacks counts as 0.

    >>> step = {"batch/new_tokens": 30, "batch/past_tokens": 10, "time/update_s": 2.0}
    >>> spent([step, step]).seconds
    Split(new=3.0, retention=1.0)
    """
    rows = list(steps)
    tokens = [_split(step, "batch/{}_tokens") for step in rows]
    rollouts = [_split(step, "rollouts/{}") for step in rows]
    seconds = []
    for step, split in zip(rows, tokens, strict=True):
        amount, share = step.get("time/update_s", 0.0), split.share or 0.0
        seconds.append(Split(new=amount * (1.0 - share), retention=amount * share))
    return Spent(rollouts=_sum(rollouts), tokens=_sum(tokens), seconds=_sum(seconds))


def _split(step: Mapping[str, float], name: str) -> Split:
    retained = math.fsum(step.get(name.format(source), 0.0) for source in RETENTION)
    return Split(new=step.get(name.format(NEW), 0.0), retention=retained)


def _sum(splits: Iterable[Split]) -> Split:
    parts = list(splits)
    return Split(
        new=math.fsum(part.new for part in parts),
        retention=math.fsum(part.retention for part in parts),
    )

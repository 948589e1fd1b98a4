"""What the learner's steps measured, from ``metrics.jsonl``, as curves that are worth a look.

The attempts of a round share one line of steps: an attempt that goes on from a checkpoint replaces the
steps it does again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Steps = Mapping[int, Mapping[str, float]]
"""Finite metrics by learner step."""

MAX_CURVES = 6
"""In one panel; more lines cannot be told apart."""

PANELS = (
    ("Reward and its parts", "reward", r"reward/(?!failed_share|abstained_share)"),
    ("Pairs put right", "share of pairs", r"pairs/accuracy$"),
    ("KL to each anchor", "nats per token", r"kl/"),
    ("Drift meters", "nats per token", r"drift/"),
    ("Entropy", "nats per token", r"entropy$"),
    ("Length of completions", "tokens", r"completions/tokens_mean$"),
)
"""Title, unit, and what the names of the metrics begin with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One metric over x, both of one length."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One chart: curves that share a unit."""

    title: str
    unit: str
    over: str
    """What x counts."""
    curves: tuple[Curve, ...]
    hollow: tuple[tuple[float, float], ...] = ()
    """Points beside the curves, such as rejected snapshots."""
    since: float | None = None
    """An x worth a line, such as the round that taught a suite."""
    left_out: int = 0
    """Curves there was no room for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """One metric from a round's first step to its last."""

    name: str
    first: float
    last: float
    lowest: float
    highest: float


def read_steps(round_folder: Path) -> dict[int, dict[str, float]]:
    """Every step of a round, of all its attempts. A line that is still being written is left out."""
    attempts = sorted(round_folder.glob("attempt-*"), key=lambda path: int(path.name[8:] or 0))
    steps: dict[int, dict[str, float]] = {}
    for attempt in attempts:
        path = attempt / "metrics.jsonl"
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                found = json.loads(line)
                step = int(found.pop("step"))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            steps[step] = {k: float(v) for k, v in found.items() if _is_finite(v)}
    return dict(sorted(steps.items()))


def panels(steps: Steps, points: int) -> tuple[Panel, ...]:
    """The charts of one round; what never left 0 is no curve, and an empty panel is left out.

    Args:
        points: most points of a curve.
    """
    names = sorted({name for metrics in steps.values() for name in metrics})
    found = []
    for title, unit, pattern in PANELS:
        curves = [curve(steps, name) for name in names if re.match(pattern, name)]
        moving = sorted((c for c in curves if any(c.y)), key=lambda c: -abs(c.y[-1]))
        if moving:
            found.append(
                Panel(
                    title=title,
                    unit=unit,
                    over="learner step",
                    curves=tuple(thinned(c, points) for c in moving[:MAX_CURVES]),
                    left_out=len(moving) - MAX_CURVES if len(moving) > MAX_CURVES else 0,
                )
            )
    return tuple(found)


def curve(steps: Steps, name: str) -> Curve:
    """One metric over the steps that have it."""
    present = [(step + 1, metrics[name]) for step, metrics in steps.items() if name in metrics]
    return Curve(name=name, x=tuple(x for x, _ in present), y=tuple(y for _, y in present))


def thinned(curve: Curve, points: int) -> Curve:
    """At most ``points`` points: the lowest and the highest of every stretch, so that no peak is lost.

    >>> thinned(Curve(name="a", x=(1, 2, 3, 4, 5, 6), y=(0, 9, 1, 1, 2, 0)), 4).y
    (0, 9, 2, 0)
    """
    if len(curve.y) <= points:
        return curve
    stretches = max(1, points // 2)
    kept: set[int] = set()
    for i in range(stretches):
        stretch = range(i * len(curve.y) // stretches, (i + 1) * len(curve.y) // stretches)
        kept |= {min(stretch, key=curve.y.__getitem__), max(stretch, key=curve.y.__getitem__)}
    order = sorted(kept)
    return Curve(
        name=curve.name,
        x=tuple(curve.x[i] for i in order),
        y=tuple(curve.y[i] for i in order),
    )


def ranges(steps: Steps) -> tuple[Range, ...]:
    """Every metric of a round in four numbers."""
    names = sorted({name for metrics in steps.values() for name in metrics})
    return tuple(_range(name, curve(steps, name).y) for name in names)


def total(steps: Steps, names: Iterable[str]) -> float:
    """Sum of some metrics over all steps."""
    wanted = list(names)
    return math.fsum(m[name] for m in steps.values() for name in wanted if name in m)


def _range(name: str, values: Sequence[float]) -> Range:
    return Range(
        name=name, first=values[0], last=values[-1], lowest=min(values), highest=max(values)
    )


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)

"""What the learner's steps measured, as curves that are worth a look."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from align.report.html.limits import Limits

Steps = Mapping[int, Mapping[str, float]]
"""Finite metrics by learner step."""

PANELS = (
    ("Reward and its parts", "reward", r"reward/(?!failed_share|abstained_share)|gold/mean$"),
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
class Bar:
    """Interval of one score, and the scores that the gate would still have allowed."""

    x: float
    low: float
    high: float
    allowed: tuple[float, float] | None
    """From the bound up to the comparator's score; None where a gain was demanded, or
    nothing was."""


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
    bars: tuple[Bar, ...] = ()
    """Intervals at some x."""
    names: tuple[str, ...] = ()
    """Names of x = 0, 1, 2, ..., which take the place of its numbers."""


def panels(steps: Steps, limits: Limits) -> tuple[Panel, ...]:
    """The charts of one round; what never left 0 is no curve, and an empty panel is left out."""
    if not limits.curves:
        return ()
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
                    curves=tuple(thinned(c, limits.points) for c in moving[: limits.curves]),
                    left_out=max(0, len(moving) - limits.curves),
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

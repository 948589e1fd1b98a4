"""How much of a campaign one page holds, so that fifty rounds stay below two megabytes."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from itertools import accumulate
from typing import Self


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Of one round, but where something else is said. What matters most is never what is left out."""

    points: int
    """Of one curve."""
    curves: int
    """Of one chart."""
    repair_charts: int
    """Of the steps that made an accepted repair."""
    checks: int
    """Rows of the verdict's table; those furthest inside their margin are left out first."""
    suites: int
    """Suites whose items are shown."""
    items: int
    """Lost items of one suite, and won ones."""
    samples: int
    """Items of the round's own suite, and completions of one step."""
    metrics: int
    """Rows of the table of all metrics."""
    reasons: int
    """Of the verdict; so many remarks, too."""
    text: int
    """Bytes of one prompt or answer on the page."""

    @classmethod
    def of(cls, num_rounds: int) -> Self:
        if num_rounds <= 12:
            return cls(
                points=160,
                curves=6,
                repair_charts=6,
                checks=60,
                suites=8,
                items=10,
                samples=4,
                metrics=400,
                reasons=40,
                text=1200,
            )
        return cls(
            points=30,
            curves=3,
            repair_charts=0,
            checks=6,
            suites=2,
            items=2,
            samples=1,
            metrics=12,
            reasons=5,
            text=240,
        )


def cut(text: object, most: int) -> str | None:
    """As much of a text as takes ``most`` bytes in HTML; what is cut is cut visibly.

    >>> cut("<abc>", 6), cut(None, 6)
    ('<ab […]', None)
    """
    if text is None:
        return None
    whole = str(text)
    sizes = accumulate(len(escape(c).encode("utf-8", "replace")) for c in whole[: most + 1])
    kept = sum(size <= most for size in sizes)
    return whole if kept == len(whole) else f"{whole[:kept]} […]"

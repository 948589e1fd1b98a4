"""Limits on what one page holds of a campaign, so that fifty rounds stay below two megabytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Largest numbers of things on a page, for one round unless stated; what matters most stays."""

    points: int
    """Points of one curve."""
    curves: int
    """Curves of one chart."""
    repair_charts: int
    """Charts of the steps that made an accepted repair."""
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
    """Reasons of the verdict, and as many remarks."""
    text: int
    """Bytes of one prompt or answer on the page."""
    forests: int
    """Suites of the campaign whose comparisons are drawn."""
    forest_rows: int
    """Comparisons drawn of one suite; older ones that passed are left out first."""
    kept_out: int
    """Sentences on rounds of the campaign that were refused or failed; the newest."""
    rounds: int
    """Rounds of the campaign shown in full: those that were refused or failed, and the newest. Others have
    one line each."""
    rows: int
    """Rows of the score matrix: the start, and the newest."""
    columns: int
    """Suites of the score matrix: the first ones, which every round has, and the newest."""

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
                forests=40,
                forest_rows=40,
                kept_out=12,
                rounds=12,
                rows=120,
                columns=80,
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
            forests=16,
            forest_rows=12,
            kept_out=12,
            rounds=50,
            rows=120,
            columns=80,
        )

    def brief(self) -> Self:
        """Return what a round gets that is not shown in full: its line and the first reason."""
        none = dict.fromkeys(
            ("curves", "checks", "suites", "items", "samples", "metrics", "repair_charts"), 0
        )
        return replace(self, **none, reasons=1)

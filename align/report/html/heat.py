"""The score matrix made visible: how far every score lies from the start's, and retention over rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from align.config.campaign import CampaignConfig
from align.gate.forgetting import ScoreMatrix
from align.report.html.curves import Curve, Panel

MAX_RETENTION = 24
"""Charts of retention on a page; the suites that lost the most come first, and the matrix has them all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One score. ``strength`` in [-1, 1] is its change from the start, 0 where there is none."""

    score: float | None
    change: float | None
    strength: float
    own: bool
    """The suite of the row's own round."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeatRow:
    """The scores of one snapshot."""

    name: str
    accepted: bool
    cells: tuple[Cell, ...]


def margins_of(config: CampaignConfig) -> dict[str, float]:
    """The margin of every suite: what the colours are measured by."""
    rounds = {spec.name: spec.suite.margin for spec in config.rounds}
    return rounds | {suite.name: suite.margin for suite in config.suites}


def heat_rows(matrix: ScoreMatrix, margins: Mapping[str, float]) -> tuple[HeatRow, ...]:
    """Scores with the strength of their colour: a suite's largest change, or two margins, is 1."""
    start = matrix.rows[0].scores
    scales = [
        max(
            [2.0 * margins.get(suite, 0.0)]
            + [abs(s - a) for row in matrix.rows if (s := row.scores[j]) is not None]
            if (a := start[j]) is not None
            else [0.0]
        )
        for j, suite in enumerate(matrix.suites)
    ]

    def cell(row: str, j: int, score: float | None) -> Cell:
        first, own = start[j], matrix.suites[j] == row
        if score is None or first is None:
            return Cell(score=score, change=None, strength=0.0, own=own)
        change = score - first
        strength = change / scales[j] if scales[j] else 0.0
        return Cell(score=score, change=change, strength=strength, own=own)

    return tuple(
        HeatRow(
            name=row.name,
            accepted=row.accepted,
            cells=tuple(cell(row.name, j, score) for j, score in enumerate(row.scores)),
        )
        for row in matrix.rows
    )


def retention_panels(matrix: ScoreMatrix, most: int = MAX_RETENTION) -> tuple[Panel, ...]:
    """One chart per suite: its score after every accepted round, rejected candidates beside the line."""
    found: list[tuple[float, Panel]] = []
    for j, suite in enumerate(matrix.suites):
        points = [
            (float(i), score, row)
            for i, row in enumerate(matrix.rows)
            if (score := row.scores[j]) is not None
        ]
        kept = [(x, y) for x, y, row in points if row.accepted]
        if len(points) < 2 or not kept:
            continue
        learnt = [i for i, row in enumerate(matrix.rows) if row.name == suite]
        panel = Panel(
            title=suite,
            unit="score",
            over="round (0 is the start)",
            curves=(
                Curve(name="accepted", x=tuple(x for x, _ in kept), y=tuple(y for _, y in kept)),
            ),
            hollow=tuple((x, y) for x, y, row in points if not row.accepted),
            since=float(learnt[0]) if learnt else None,
        )
        found.append((kept[-1][1] - max(y for _, y in kept), panel))
    if len(found) > most:
        found = sorted(found, key=lambda pair: pair[0])[:most]
    return tuple(panel for _, panel in found)

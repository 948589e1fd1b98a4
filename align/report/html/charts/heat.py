"""The score matrix made visible: how far every score lies from the start's, and retention over rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from align.config.campaign import CampaignConfig
from align.gate.checks import Against, Check
from align.gate.forgetting import MatrixRow, ScoreMatrix
from align.gate.verdict import Verdict
from align.report.html.charts.curves import Bar, Curve, Panel

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
    items: int | None = None
    """Number of items behind the score, where it is below that of others in its column."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeatRow:
    """The scores of one snapshot."""

    name: str
    accepted: bool
    cells: tuple[Cell, ...]
    production: bool = False


def margins_of(config: CampaignConfig) -> dict[str, float]:
    """The margin of every suite: what the colours are measured by."""
    rounds = {spec.name: spec.suite.margin for spec in config.rounds}
    return rounds | {suite.name: suite.margin for suite in config.suites}


def heat_rows(
    matrix: ScoreMatrix, margins: Mapping[str, float], production: str | None = None
) -> tuple[HeatRow, ...]:
    """Scores with the strength of their colour: a suite's largest change, or two margins, is 1.

    Args:
        production: name of the row that is production.
    """
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

    def cell(row: MatrixRow, j: int) -> Cell:
        first, score, own = start[j], row.scores[j], matrix.suites[j] == row.name
        items = row.items[j] if matrix.on_fewer(row)[j] else None
        if score is None or first is None:
            return Cell(score=score, change=None, strength=0.0, own=own, items=items)
        change = score - first
        strength = change / scales[j] if scales[j] else 0.0
        return Cell(score=score, change=change, strength=strength, own=own, items=items)

    return tuple(
        HeatRow(
            name=row.name,
            accepted=row.accepted,
            production=row.accepted and row.name == production,
            cells=tuple(cell(row, j) for j in range(len(row.scores))),
        )
        for row in matrix.rows
    )


Judged = Mapping[tuple[str, str], Check]
"""The comparison of a round's candidate on a suite that its chart shows."""
FIRST: tuple[Against, ...] = ("best", "start", "parent")
"""Comparators by what a chart of retention is about."""


def judged_by(verdicts: Mapping[str, Verdict]) -> Judged:
    """Return the comparison of every suite's mean with the best so far, else the start, else the parent.

    Args:
        verdicts: by name of the round.
    """
    chosen: dict[tuple[str, str], tuple[int, Check]] = {}
    for name, verdict in verdicts.items():
        for check in verdict.checks:
            if check.what != "value" or check.snapshot in ("chance", "length"):
                continue
            known = [FIRST.index(a) for a in (check.against, *check.also) if a in FIRST]
            rank, key = min(known, default=len(FIRST)), (name, check.suite)
            if key not in chosen or rank < chosen[key][0]:
                chosen[key] = rank, check
    return {key: check for key, (_, check) in chosen.items()}


def bar_of(x: float, score: float, check: Check) -> Bar:
    """Move a comparison's interval to the candidate's score.

    The gate's interval is one of the difference between two snapshots, item by item; it is narrower than
    one of the score alone, and it is what the verdict rests on.
    """
    low, high = (score + end - check.difference for end in check.interval)
    comparator = score - check.difference
    guarded = check.role == "retention"
    allowed = (comparator - check.allowed, comparator) if guarded else None
    return Bar(x=x, low=low, high=high, allowed=allowed)


def retention_panels(
    matrix: ScoreMatrix, most: int = MAX_RETENTION, judged: Judged | None = None
) -> tuple[Panel, ...]:
    """One chart per suite: its score after every accepted round, rejected candidates beside the line."""
    judged = judged or {}
    names = tuple(row.name for row in matrix.rows)
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
            over="rounds",
            names=names,
            bars=tuple(
                bar_of(x, y, check)
                for x, y, row in points
                if x > 0 and (check := judged.get((row.name, suite))) is not None
            ),
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

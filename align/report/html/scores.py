"""Scores as the page shows them: family by family, since no mean is over two of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from align.config.campaign import CampaignConfig
from align.config.gate import Family
from align.gate.checks import Against, Check
from align.gate.forgetting import ON_FEWER_WORDS, MatrixRow, PathScores, ScoreMatrix
from align.gate.suites.kinds import KINDS
from align.gate.verdict import Verdict
from align.report.families import by_family, families_of, path_by_family
from align.report.html.charts import Bar, Curve, Panel, thinned
from align.report.html.limits import Limits
from align.report.learning_cost import Learning
from align.report.summary_numbers import SHARES, SUMMARY, Form, summary_numbers

MAX_ROUNDS = 40
"""Rounds whose intervals and rejected candidates all have room on a chart of retention."""
MAX_POINTS, MAX_MARKS = 120, 24
"""Points of a curve of retention, and intervals and rejected candidates beside it if there are more."""
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
    """Return the margin of every suite, which colours are measured by."""
    rounds = {spec.name: spec.suite.margin for spec in config.rounds}
    return rounds | {suite.name: suite.margin for suite in config.suites}


def heat_rows(
    matrix: ScoreMatrix, margins: Mapping[str, float], production: str | None = None
) -> tuple[HeatRow, ...]:
    """Give every score the strength of its colour: a suite's largest change, or two margins, is 1.

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

    def cell(row: MatrixRow, j: int, on_fewer: bool) -> Cell:
        first, score, is_own = start[j], row.scores[j], matrix.suites[j] == row.name
        items = row.items[j] if on_fewer else None
        if score is None or first is None:
            return Cell(score=score, change=None, strength=0.0, own=is_own, items=items)
        change = score - first
        strength = change / scales[j] if scales[j] else 0.0
        return Cell(score=score, change=change, strength=strength, own=is_own, items=items)

    return tuple(
        HeatRow(
            name=row.name,
            accepted=row.accepted,
            production=row.accepted and row.name == production,
            cells=tuple(cell(row, j, fewer) for j, fewer in enumerate(matrix.on_fewer(row))),
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
    """Plan a chart of every suite: scores after accepted rounds, rejected candidates beside the line."""
    judged = judged or {}
    changes: list[tuple[float, Panel]] = []
    for j, suite in enumerate(matrix.suites):
        rows = matrix.rows
        if len(rows) > MAX_ROUNDS:  # The axis has room only for those that measured the suite.
            rows = tuple(row for row in rows if row.scores[j] is not None)
        stretch = 1 if len(rows) <= MAX_ROUNDS else math.ceil(len(rows) / MAX_MARKS)
        points = [
            (float(i), score, row)
            for i, row in enumerate(rows)
            if (score := row.scores[j]) is not None
        ]
        accepted = [(x, y) for x, y, row in points if row.accepted]
        if len(points) < 2 or not accepted:
            continue
        learnt = [i for i, row in enumerate(rows) if row.name == suite]
        bars = [
            bar_of(x, y, check)
            for x, y, row in points
            if row is not matrix.rows[0] and (check := judged.get((row.name, suite))) is not None
        ]
        hollow = [(x, y) for x, y, row in points if not row.accepted]
        # Of a stretch of rounds the interval nearest to its bound, and the lowest rejected score.
        rooms = {b.x: b.low - b.allowed[0] if b.allowed else math.inf for b in bars}
        barred, rejected = lowest(rooms, stretch), lowest(dict(hollow), stretch)
        xs, ys = zip(*accepted, strict=True)
        panel = Panel(
            title=suite,
            unit="score",
            over="rounds" if len(rows) == len(matrix.rows) else "rounds that measured it",
            names=tuple(row.name for row in rows),
            bars=tuple(bar for bar in bars if bar.x in barred),
            curves=(thinned(Curve(name="accepted", x=xs, y=ys), MAX_POINTS),),
            hollow=tuple((x, y) for x, y in hollow if x in rejected),
            stretch=stretch,
            since=float(learnt[0]) if learnt else None,
        )
        changes.append((accepted[-1][1] - max(y for _, y in accepted), panel))
    if len(changes) > most:
        changes = sorted(changes, key=lambda pair: pair[0])[:most]
    return tuple(panel for _, panel in changes)


def lowest(values: Mapping[float, float], stretch: int) -> set[float]:
    """Choose of every ``stretch`` places on an axis the one with the lowest value.

    >>> lowest({0.0: 5.0, 1.0: 3.0, 2.0: 4.0}, 2)
    {1.0, 2.0}
    """
    chosen: dict[int, float] = {}
    for x in sorted(values, key=lambda x: -values[x]):
        chosen[int(x) // stretch] = x
    return set(chosen.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One suite."""

    name: str
    notes: tuple[str, ...]
    """Notes that a reader of its scores needs, such as ``win rate against base``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """A summary number of continual learning."""

    name: str
    meaning: str
    value: float
    form: Form
    on_fewer: bool = False
    """True if it compares means of one suite over different numbers of items."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyView:
    """The suites of one family."""

    family: Family
    columns: tuple[Column, ...]
    heat: tuple[HeatRow, ...]
    on_fewer: str
    """Sentence about means over fewer items than others of their column; empty if there are none."""
    numbers: tuple[Number, ...]
    """Summary numbers that could be formed."""
    retention: tuple[Panel, ...]
    rows_left_out: int
    """Older rows, after the start, that the matrix has no room for."""
    columns_left_out: int


def family_views(
    matrix: ScoreMatrix,
    config: CampaignConfig,
    verdicts: Mapping[str, Verdict] | None = None,
    production: str | None = None,
    limits: Limits | None = None,
    learning: Learning | None = None,
    path: PathScores | None = None,
) -> tuple[FamilyView, ...]:
    """Make one view per family that has suites.

    Args:
        verdicts: by name of the round.
        production: name of the matrix's row that is production.
        limits: of the page; None: those of a campaign with as many rounds as the file has.
        learning: what the rounds cost and references reached, for the summary numbers; None: not known.
        path: scores of all rounds, for the summary numbers; None: the matrix has them.
    """
    sums = None if path is None else path_by_family(path, families_of(config))
    limits = limits or Limits.of(len(config.rounds))
    judged = judged_by(verdicts or {})
    parts = by_family(matrix, families_of(config))
    margins = margins_of(config)
    notes: dict[str, tuple[str, ...]] = {}
    for suite in config.suites:
        remarks = (
            KINDS[suite.source].reading(suite),
            "items rotate" if suite.rotate else "",
            "watched only" if suite.role == "watch" else "",
        )
        notes[suite.name] = tuple(filter(None, remarks))
    return tuple(
        FamilyView(
            family=family,
            columns=tuple(Column(name=s, notes=notes.get(s, ())) for s in shown.suites),
            heat=heat_rows(shown, margins, production),
            on_fewer=ON_FEWER_WORDS if any(any(whole.on_fewer(r)) for r in whole.rows) else "",
            rows_left_out=len(whole.rows) - len(shown.rows),
            columns_left_out=len(whole.suites) - len(shown.suites),
            numbers=tuple(
                Number(
                    name=name,
                    meaning=SUMMARY[name].meaning,
                    value=value,
                    form=SUMMARY[name].form,
                    on_fewer=numbers.uneven and name not in SHARES,
                )
                for name, value in summary_numbers(numbers, learning or Learning()).items()
                if value is not None
            ),
            retention=retention_panels(whole, MAX_RETENTION // len(parts), judged),
        )
        for family, whole, shown, numbers in (
            (f, part, cropped(part, limits), sums[f] if sums else part) for f, part in parts
        )
    )


def cropped(matrix: ScoreMatrix, limits: Limits) -> ScoreMatrix:
    """Return the part of a matrix there is room for: the start, the first suites, and what is newest.

    Suites that no row of it measured are left out first.
    """
    rows, suites = matrix.rows, [*range(len(matrix.suites))]
    if len(rows) > limits.rows:
        rows = (rows[0], *rows[1 - limits.rows :])
    shown = replace(matrix, rows=rows)
    if len(suites) > limits.columns:
        suites = [j for j in suites if any(row.scores[j] is not None for row in rows[1:])]
    if len(suites) > limits.columns:
        first = limits.columns // 4
        suites = [*suites[:first], *suites[first - limits.columns :]]
    return shown if len(suites) == len(matrix.suites) else shown.select(suites)

"""Scores as the page shows them: family by family, since no mean is over two of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from align.config.campaign import CampaignConfig
from align.config.gate import Family
from align.gate.forgetting import ON_FEWER_WORDS, ScoreMatrix
from align.gate.verdict import Verdict
from align.report.families import by_family, families_of
from align.report.html.charts.curves import Panel
from align.report.html.charts.heat import (
    MAX_RETENTION,
    HeatRow,
    heat_rows,
    judged_by,
    margins_of,
    retention_panels,
)
from align.report.html.limits import Limits


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One suite."""

    name: str
    notes: tuple[str, ...]
    """What a reader must know to read its scores, such as ``win rate against base``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """A summary number of continual learning."""

    name: str
    meaning: str
    value: float
    is_change: bool
    """Of scores; shown with its sign."""
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
    """Those that could be formed."""
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
) -> tuple[FamilyView, ...]:
    """One view per family that has suites.

    Args:
        verdicts: by name of the round.
        production: name of the matrix's row that is production.
        limits: of the page; None: those of a campaign with as many rounds as the file has.
    """
    limits = limits or Limits.of(len(config.rounds))
    judged = judged_by(verdicts or {})
    parts = by_family(matrix, families_of(config))
    margins, notes = margins_of(config), dict(_notes(config))
    return tuple(
        FamilyView(
            family=family,
            columns=tuple(Column(name=s, notes=notes.get(s, ())) for s in shown.suites),
            heat=heat_rows(shown, margins, production),
            on_fewer=ON_FEWER_WORDS if any(any(own.on_fewer(r)) for r in own.rows) else "",
            rows_left_out=len(own.rows) - len(shown.rows),
            columns_left_out=len(own.suites) - len(shown.suites),
            numbers=tuple(_numbers(own)),
            retention=retention_panels(own, MAX_RETENTION // len(parts), judged),
        )
        for family, own, shown in ((f, own, cropped(own, limits)) for f, own in parts)
    )


def cropped(matrix: ScoreMatrix, limits: Limits) -> ScoreMatrix:
    """Return the part of a matrix there is room for: the start, the first suites, and what is newest."""
    rows, suites = matrix.rows, range(len(matrix.suites))
    if len(rows) > limits.rows:
        rows = (rows[0], *rows[1 - limits.rows :])
    shown = replace(matrix, rows=rows)
    if len(suites) > limits.columns:
        first = limits.columns // 4
        return shown.select((*suites[:first], *suites[first - limits.columns :]))
    return shown


def _notes(config: CampaignConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    for suite in config.suites:
        notes = []
        if suite.against:
            notes.append(f"win rate against {suite.against.replace('round:', 'round ')}")
        if suite.rotate:
            notes.append("items rotate")
        if suite.text is not None:
            notes.append("nats per token")
        if suite.role == "watch":
            notes.append("watched only")
        yield suite.name, tuple(notes)


def _numbers(matrix: ScoreMatrix) -> Iterator[Number]:
    for name, meaning, value, is_change in (
        ("AP", "average performance: mean over tasks at the end",
         matrix.average_performance(), False),
        ("AIA", "the same, averaged over the rounds",
         matrix.average_incremental_accuracy(), False),
        ("LA", "learning accuracy: mean of each task after its round",
         matrix.learning_accuracy(), False),
        ("BWT", "backward transfer: below 0 is forgetting",
         matrix.backward_transfer(), True),
        ("FM", "forgetting: above 0 is loss from each task's best",
         matrix.forgetting(), True),
        ("FWT", "forward transfer: gain on tasks before their round",
         matrix.forward_transfer(), True),
    ):  # fmt: skip
        if value is not None:
            yield Number(
                name=name,
                meaning=meaning,
                value=value,
                is_change=is_change,
                on_fewer=matrix.uneven,
            )

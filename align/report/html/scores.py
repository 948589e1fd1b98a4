"""Scores as the page shows them: family by family, since no mean is over two of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from align.config.campaign import CampaignConfig
from align.config.demands import Family
from align.gate.forgetting import ScoreMatrix
from align.report.families import by_family, families_of
from align.report.html.curves import Panel
from align.report.html.heat import MAX_RETENTION, HeatRow, heat_rows, margins_of, retention_panels


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


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyView:
    """The suites of one family."""

    family: Family
    columns: tuple[Column, ...]
    heat: tuple[HeatRow, ...]
    numbers: tuple[Number, ...]
    """Those that could be formed."""
    retention: tuple[Panel, ...]


def family_views(matrix: ScoreMatrix, config: CampaignConfig) -> tuple[FamilyView, ...]:
    """One view per family that has suites."""
    parts = by_family(matrix, families_of(config))
    margins, notes = margins_of(config), dict(_notes(config))
    return tuple(
        FamilyView(
            family=family,
            columns=tuple(Column(name=s, notes=notes.get(s, ())) for s in own.suites),
            heat=heat_rows(own, margins),
            numbers=tuple(_numbers(own)),
            retention=retention_panels(own, MAX_RETENTION // len(parts)),
        )
        for family, own in parts
    )


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
            yield Number(name=name, meaning=meaning, value=value, is_change=is_change)

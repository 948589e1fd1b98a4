"""Campaigns side by side: the same suites after all their rounds; those that differ in their seed alone are
one row, as mean and spread."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align.gate.evidence import Evidence
from align.report.explanation.answer import ReportAnswer, answer_of
from align.report.status import scores_of
from align.report.summary_numbers import summary_of

UNSEEDED = ("seed", "name")
"""Settings in which campaigns of one group may differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedSpread:
    """One number over the campaigns of a group."""

    mean: float
    spread: float | None
    """Sample standard deviation; None for a single campaign."""
    n: int
    """Number of campaigns that have the number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedGroup:
    """Campaigns that differ in nothing but their seed."""

    campaigns: tuple[str, ...]
    """Names of the campaigns as on the command line."""
    seeds: tuple[int, ...]
    accepted: SeedSpread
    """Number of accepted rounds."""
    rejected: SeedSpread
    scores: Mapping[str, SeedSpread | None]
    """Mean of production by suite; None if no campaign measured it."""
    summary: Mapping[str, SeedSpread | None]
    """Summary numbers, those of `align.report.summary_numbers.SUMMARY`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedCampaigns:
    """Groups of campaigns, all over the same columns."""

    suites: tuple[str, ...]
    base: Mapping[str, SeedSpread | None]
    """Mean of the campaigns' starts by suite."""
    groups: tuple[ComparedGroup, ...]
    answers: Mapping[str, ReportAnswer]
    """Production of each campaign, and what was kept out and why."""


def compare(campaigns: Sequence[tuple[str, Evidence]]) -> ComparedCampaigns:
    """Compare campaigns by what production scores.

    Args:
        campaigns: each under the name it is to be shown by.
    """
    grouped: dict[str, list[tuple[str, Evidence]]] = {}
    for name, evidence in campaigns:
        content: dict[str, Any] = evidence.config.content()
        shared = {key: value for key, value in content.items() if key not in UNSEEDED}
        grouped.setdefault(json.dumps(shared, sort_keys=True), []).append((name, evidence))
    scores = {
        name: scores_of(evidence, evidence.ledger.alias("production") or evidence.base)
        for name, evidence in campaigns
    }
    suites = tuple(dict.fromkeys(suite for measured in scores.values() for suite in measured))
    groups = []
    for members in grouped.values():
        states = [[record.state for record in evidence.committed()] for _, evidence in members]
        summaries = [summary_of(evidence) for _, evidence in members]
        groups.append(
            ComparedGroup(
                campaigns=tuple(name for name, _ in members),
                seeds=tuple(evidence.config.seed for _, evidence in members),
                accepted=_spread([float(each.count("accepted")) for each in states]),
                rejected=_spread([float(each.count("rejected")) for each in states]),
                scores=_spreads([scores[name] for name, _ in members], suites),
                summary=_spreads(summaries, tuple(summaries[0])),
            )
        )
    return ComparedCampaigns(
        suites=suites,
        base=_spreads([scores_of(e, e.base) for _, e in campaigns], suites),
        groups=tuple(groups),
        answers={name: answer_of(evidence) for name, evidence in campaigns},
    )


def _spreads(
    rows: Sequence[Mapping[str, float | None]], names: Sequence[str]
) -> dict[str, SeedSpread | None]:
    spreads: dict[str, SeedSpread | None] = {}
    for name in names:
        values = [value for row in rows if (value := row.get(name)) is not None]
        spreads[name] = _spread(values) if values else None
    return spreads


def _spread(values: Sequence[float]) -> SeedSpread:
    """Return mean and sample standard deviation.

    >>> _spread([0.5, 0.7]).mean, round(_spread([0.5, 0.7]).spread, 4)
    (0.6, 0.1414)
    """
    spread = statistics.stdev(values) if len(values) > 1 else None
    return SeedSpread(mean=math.fsum(values) / len(values), spread=spread, n=len(values))

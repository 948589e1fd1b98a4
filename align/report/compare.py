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
from align.report.status import scores_of, summary_numbers

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
    """Summary numbers AP, AIA, LA, BWT, FM, FWT."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedCampaigns:
    """Groups of campaigns, all over the same columns."""

    suites: tuple[str, ...]
    base: Mapping[str, SeedSpread | None]
    """Mean of the campaigns' starts by suite."""
    groups: tuple[ComparedGroup, ...]
    answers: Mapping[str, ReportAnswer]
    """Sentences by campaign on what is production, and what was kept out and why."""


def compare(campaigns: Sequence[tuple[str, Evidence]]) -> ComparedCampaigns:
    """Compare campaigns by what production scores.

    Args:
        campaigns: campaigns, each with the name that it is shown by.
    """
    grouped: dict[str, list[tuple[str, Evidence]]] = {}
    for name, evidence in campaigns:
        grouped.setdefault(_kind(evidence), []).append((name, evidence))
    measured = [scores_of(e, _production(e)) for _, e in campaigns]
    suites = tuple(dict.fromkeys(suite for scores in measured for suite in scores))
    return ComparedCampaigns(
        suites=suites,
        base=_spreads([scores_of(e, e.base) for _, e in campaigns], suites),
        groups=tuple(_group(members, suites) for members in grouped.values()),
        answers={name: answer_of(evidence) for name, evidence in campaigns},
    )


def _group(members: Sequence[tuple[str, Evidence]], suites: Sequence[str]) -> ComparedGroup:
    evidences = [evidence for _, evidence in members]
    states = [[record.state for record in e.committed()] for e in evidences]
    summaries = [summary_numbers(evidence.matrix()) for evidence in evidences]
    return ComparedGroup(
        campaigns=tuple(name for name, _ in members),
        seeds=tuple(evidence.config.seed for evidence in evidences),
        accepted=_spread([float(each.count("accepted")) for each in states]),
        rejected=_spread([float(each.count("rejected")) for each in states]),
        scores=_spreads([scores_of(e, _production(e)) for e in evidences], suites),
        summary=_spreads(summaries, tuple(summaries[0])),
    )


def _kind(evidence: Evidence) -> str:
    """Return the settings that campaigns of one group share, as a string to compare."""
    content: dict[str, Any] = evidence.config.content()
    shared = {key: value for key, value in content.items() if key not in UNSEEDED}
    return json.dumps(shared, sort_keys=True)


def _production(evidence: Evidence) -> str:
    return evidence.ledger.alias("production") or evidence.base


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

"""Suites told apart by family: a gain in following instructions makes up for no loss of safety."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from align.config.campaign import CampaignConfig
from align.config.gate import Family
from align.gate.checks import Check, What
from align.gate.forgetting import ScoreMatrix
from align.gate.summary import RATES

ORDER: tuple[Family, ...] = ("general", "instruction", "safety")

GUARDED: dict[What, str] = {
    "value": "",
    "truncation": "answers not cut",
    "failure": "answers with a score",
    "zero_tolerance": "items that must not fail",
}
"""Words for the quantity of a check, empty for the mean."""


def families_of(config: CampaignConfig) -> dict[str, Family]:
    """Return the family of every suite, those of rounds included."""
    return {spec.name: spec.family for spec in config.suites} | {
        round.name: round.suite.family for round in config.rounds
    }


def by_family(
    matrix: ScoreMatrix, families: Mapping[str, Family]
) -> list[tuple[Family, ScoreMatrix]]:
    """Return a matrix of the columns of each family: no mean is over two families."""
    parts = []
    for family in ORDER:
        columns = [
            column
            for column, suite in enumerate(matrix.suites)
            if families.get(suite, "general") == family
        ]
        if columns:
            suites = tuple(matrix.suites[column] for column in columns)
            rows = tuple(
                replace(row, scores=tuple(row.scores[column] for column in columns))
                for row in matrix.rows
            )
            parts.append((family, replace(matrix, suites=suites, rows=rows)))
    return parts


def passed_lines(checks: Iterable[Check]) -> Iterator[str]:
    """Count the retention checks that passed, family by family, and those of them that compare rates."""
    guarded = [check for check in checks if check.role == "retention"]
    present = [family for family in ORDER if any(check.family == family for check in guarded)]
    for family in present or [ORDER[0]]:
        of_family = [check for check in guarded if check.family == family]
        passed = [check for check in of_family if check.outcome == "passed"]
        which = f"{family}: " if len(present) > 1 else ""
        rates = sum(check.what in RATES for check in passed)
        label = f" ({rates} of them on answers that are cut or have no score)" if rates else ""
        yield f"{which}{len(passed)} of {len(of_family)} retention checks passed{label}"

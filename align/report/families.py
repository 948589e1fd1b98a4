"""Suites told apart by family: a gain in following instructions makes up for no loss of safety."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from align.config.campaign import CampaignConfig
from align.config.gate import Family
from align.gate.checks import Check, What
from align.gate.forgetting import PathScores, ScoreMatrix
from align.gate.summary import RATES

ORDER: tuple[Family, ...] = ("general", "instruction", "safety")

GUARDED: dict[What, str] = {
    "value": "",
    "truncation": "answers not cut",
    "failure": "answers with a score",
    "zero_tolerance": "items that must not fail",
}
"""Names for people of what a check compares; empty for the mean."""


def families_of(config: CampaignConfig) -> dict[str, Family]:
    """Return the family of every suite, those of rounds included."""
    return {spec.name: spec.family for spec in config.suites} | {
        round.name: round.suite.family for round in config.rounds
    }


def by_family(
    matrix: ScoreMatrix, families: Mapping[str, Family]
) -> list[tuple[Family, ScoreMatrix]]:
    """Split a matrix by family, since no mean is over two of them; leave out families without a suite."""
    parts = []
    for family in ORDER:
        columns = [
            column
            for column, suite in enumerate(matrix.suites)
            if families.get(suite, "general") == family
        ]
        if columns:
            parts.append((family, matrix.select(columns)))
    return parts


def path_by_family(path: PathScores, families: Mapping[str, Family]) -> dict[Family, PathScores]:
    """Split the scores of a path by family."""
    suites = {family: set[str]() for family in ORDER}
    for suite in path.suites:
        suites[families.get(suite, "general")].add(suite)
    return {
        family: path if names == path.suites else path.select(names)
        for family, names in suites.items()
        if names
    }


def passed_lines(checks: Iterable[Check]) -> Iterator[str]:
    """Count, family by family, the retention checks that passed, and those of them that compare rates."""
    retention = [check for check in checks if check.role == "retention"]
    present = [family for family in ORDER if any(check.family == family for check in retention)]
    for family in present or [ORDER[0]]:
        of_family = [check for check in retention if check.family == family]
        passed = [check for check in of_family if check.outcome == "passed"]
        which = f"{family}: " if len(present) > 1 else ""
        rates = sum(check.what in RATES for check in passed)
        label = f" ({rates} of them on answers that are cut or have no score)" if rates else ""
        yield f"{which}{len(passed)} of {len(of_family)} retention checks passed{label}"

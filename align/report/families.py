"""Suites told apart by family: a gain in following instructions makes up for no loss of safety."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

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
"""What a check compares besides the mean."""


def families_of(config: CampaignConfig) -> dict[str, Family]:
    """Family of every suite, those of rounds included."""
    return {spec.name: spec.family for spec in config.suites} | {
        round.name: round.suite.family for round in config.rounds
    }


def by_family(
    matrix: ScoreMatrix, families: Mapping[str, Family]
) -> list[tuple[Family, ScoreMatrix]]:
    """The columns of each family that has any, as a matrix of their own: no mean is over two families."""
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


def passed_lines(checks: Iterable[Check]) -> Iterator[str]:
    """How many retention checks passed, family by family, and how many of those compare rates."""
    held = [check for check in checks if check.role == "retention"]
    present = [family for family in ORDER if any(check.family == family for check in held)]
    for family in present or [ORDER[0]]:
        own = [check for check in held if check.family == family]
        passed = [check for check in own if check.outcome == "passed"]
        which = f"{family}: " if len(present) > 1 else ""
        rates = sum(check.what in RATES for check in passed)
        label = f" ({rates} of them on answers that are cut or have no score)" if rates else ""
        yield f"{which}{len(passed)} of {len(own)} retention checks passed{label}"

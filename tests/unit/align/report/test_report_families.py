"""Families of suites are told apart: in tables, in counts and in what a decision says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from align.gate.evidence import Evidence
from align.gate.forgetting import MatrixRow, ScoreMatrix
from align.gate.verdict import Verdict
from align.report.explanation.explain import explain
from align.report.families import by_family, families_of, passed_lines
from align.report.tables import campaign_report
from tests.unit.decided import decided

MATRIX = ScoreMatrix(
    suites=("g", "s", "r"),
    rows=(
        MatrixRow(name="base", accepted=True, scores=(0.9, 0.8, 0.1)),
        MatrixRow(name="r", accepted=True, scores=(0.9, 0.7, 0.6)),
    ),
)


def test_every_family_has_a_matrix_of_its_own() -> None:
    (general, one), (instruction, two), (safety, three) = by_family(
        MATRIX, {"s": "safety", "r": "instruction"}
    )
    assert (general, instruction, safety) == ("general", "instruction", "safety")
    assert (one.suites, two.suites, three.suites) == (("g",), ("r",), ("s",))
    assert [row.scores for row in three.rows] == [(0.8,), (0.7,)]
    assert (two.average_performance(), three.average_performance()) == (0.6, None)


def test_one_family_is_the_whole_matrix() -> None:
    assert by_family(MATRIX, {}) == [("general", MATRIX)]


def with_safety(folder: Path) -> Evidence:
    """The decided campaign, its rounds' suites of the family safety."""
    evidence = decided(folder)
    raw = evidence.config.model_dump(mode="json")
    for spec in (raw["defaults"], *raw["rounds"]):
        spec["suite"]["family"] = "safety"
    return replace(evidence, config=type(evidence.config).model_validate(raw))


def test_the_tables_are_apart(tmp_path: Path) -> None:
    evidence = with_safety(tmp_path)
    assert families_of(evidence.config) == {
        "general": "general", "first": "safety", "second": "safety",
    }  # fmt: skip
    console = Console(width=140, record=True, quiet=False, file=(tmp_path / "out").open("w"))
    console.print(campaign_report(evidence, tmp_path))
    text = " ".join(console.export_text().split())
    assert "Score of every snapshot on every general suite" in text
    assert "Score of every snapshot on every safety suite" in text


def test_counts_and_stories_are_apart(tmp_path: Path) -> None:
    evidence = decided(tmp_path)
    verdict = Verdict.from_dict(evidence.committed()[1].report or {})
    (line,) = passed_lines(verdict.checks)
    # Of the general suite against parent and start, of the first round's against its own snapshot.
    rates = "6 of them on answers that are cut or have no score"
    assert line == f"7 of 9 retention checks passed ({rates})"
    mixed = [
        replace(check, family="safety") if check.suite == "first" else check
        for check in verdict.checks
    ]
    general, safety = passed_lines(mixed)
    assert general.startswith("general: ") and safety.startswith("safety: ")
    told = explain(evidence, "second")
    apart = replace(
        told,
        suites=tuple(
            replace(story, family="safety") if story.suite == "first" else story
            for story in told.suites
        ),
    )
    lines = list(apart.lines())
    assert lines.index("GENERAL") < lines.index("SAFETY")
    assert "GENERAL" not in list(told.lines())

"""Means over fewer items than others of their column carry a mark, wherever they are shown."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from align.data.base_model import SCHEMES
from align.gate.evidence import Evidence
from align.gate.forgetting import ON_FEWER_WORDS
from align.gate.suites.looks import first
from align.gate.suites.suites import build_suites
from align.report.html.page import render
from align.report.status import plain, status_of
from align.report.tables import campaign_report
from tests.unit.decided import N, decided
from tests.unit.ledgers import FIRST


def stopped_early(folder: Path, suite: str) -> Evidence:
    """Return a decided campaign whose first snapshot has 66 of a suite's 200 items."""
    evidence = decided(folder)
    suites = {s.name: s for s in build_suites(evidence.config, SCHEMES, None)}  # type: ignore[arg-type]
    part = first(evidence.load(FIRST.id, [suites[suite]])[suite], 66)
    record = evidence.ledger.find_evaluation(FIRST.id, suites[suite].hash)
    assert record is not None
    evidence.replace(record, part, "was cut")
    return evidence


def text_of(evidence: Evidence, folder: Path) -> str:
    console = Console(width=200, record=True, file=(folder / "out").open("w"))
    console.print(campaign_report(evidence, folder))
    return console.export_text()


def test_tables_mark_the_cell_and_the_summary(tmp_path: Path) -> None:
    evidence = stopped_early(tmp_path, "first")
    rows = evidence.matrix().rows
    text = text_of(evidence, tmp_path)
    assert [row.items[1] for row in rows] == [N, 66, N]
    assert f"{rows[1].scores[1]:.3f}*" in text
    assert text.count("*") > 2  # The cell, the caption, and summary numbers.
    assert ON_FEWER_WORDS in " ".join(text.split())
    numbers = next(line for line in text.splitlines() if line.startswith("AP "))
    assert numbers.count("*") == len(numbers.split()) / 2


def test_a_suite_that_is_no_task_leaves_the_summary_unmarked(tmp_path: Path) -> None:
    evidence = stopped_early(tmp_path, "general")
    assert not evidence.matrix().uneven
    assert text_of(evidence, tmp_path).count("*") == 2


def test_programs_and_the_page_say_so(tmp_path: Path) -> None:
    evidence = stopped_early(tmp_path, "first")
    status = plain(status_of(evidence))
    assert status["on_fewer"] == {
        "why": ON_FEWER_WORDS, "cells": (("first", "first"),), "summary": True,
    }  # fmt: skip
    assert [row["items"]["first"] for row in status["matrix"]] == [N, 66, N]
    page = render(evidence)
    assert '<abbr title="over 66 items">*</abbr>' in page
    assert f"* {ON_FEWER_WORDS}." in page


def test_nothing_is_marked_where_all_items_were_measured(tmp_path: Path) -> None:
    evidence = decided(tmp_path)
    assert "*" not in text_of(evidence, tmp_path)
    assert "on_fewer" not in plain(status_of(evidence))
    assert ON_FEWER_WORDS not in render(evidence)

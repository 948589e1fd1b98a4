"""Two scenarios in a tiny form, from the generator to the line of the table, and what a break costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scenario_page import table
from benchmarks.scenarios import main

TINY = ("classification", "alignment")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenarios")
    main(words(folder, TINY))
    return folder


def words(folder: Path, scenarios: tuple[str, ...]) -> list[str]:
    return ["--quick", "--scenarios", ",".join(scenarios), "--folder", str(folder),
            "--results", str(folder / "results.jsonl")]  # fmt: skip


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_both_arms_of_a_scenario_go_through_all_of_their_rounds(results: Path) -> None:
    lines = lines_of(results)
    assert [(line["scenario"], line["arm"]) for line in lines] == [
        (name, arm) for name in TINY for arm in ("naive", "retained")
    ]
    for line in lines:
        assert "error" not in line, line["error"]
        assert (line["rounds"], len(line["matrix"])) == (3, 4)
        assert all(line[name] is not None for name in ("AP", "LA", "BWT", "FWT", "general", "s"))
    assert not any((results / "stores").glob("*/*"))
    rows = [row for row in table(lines).splitlines() if row.startswith("| classification |")]
    assert [row.split("|")[3].strip() for row in rows] == ["naive", "retained"]


def test_arms_differ_in_what_they_replay_and_in_nothing_else(results: Path) -> None:
    naive, retained, *_ = lines_of(results)
    assert naive["matrix"]["base"] == retained["matrix"]["base"]
    assert naive["key"] != retained["key"]


def test_a_finished_run_is_not_run_again(results: Path) -> None:
    before = (results / "results.jsonl").read_text()
    main(words(results, TINY))
    assert (results / "results.jsonl").read_text() == before

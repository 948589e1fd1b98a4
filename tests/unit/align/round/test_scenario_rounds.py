"""Two scenarios in a tiny form, from the generator to the line of the table, and a break in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.campaigns import Clock
from benchmarks.scenario_page import table
from benchmarks.scenarios import main

RUNS = [("classification", "naive"), ("classification", "retained"), ("alignment", "retained")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenarios")
    run(folder, "classification", "naive,retained")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Clock, "on_verdict", interrupted)
        run(folder, "alignment", "retained")
    run(folder, "alignment", "retained")
    return folder


def interrupted(clock: Clock, plan: Any, outcome: Any) -> None:
    """Break the command off once the first round is decided."""
    assert plan.spec.name == "polite"
    raise KeyboardInterrupt


def run(folder: Path, scenario: str, arms: str) -> None:
    results = str(folder / "results.jsonl")
    main(["--quick", "--scenarios", scenario, "--arms", arms, "--folder", str(folder),
          "--seeds", "1", "--results", results])  # fmt: skip


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_scenario_goes_from_its_generator_to_the_table(folder: Path) -> None:
    lines = lines_of(folder)
    assert [(line["scenario"], line["arm"]) for line in lines] == RUNS
    for line in lines:
        assert "error" not in line, line["error"]
        assert (line["rounds"], len(line["matrix"])) == (2, 3)
        assert all(line[name] is not None for name in ("AP", "LA", "BWT", "FWT", "general"))
    # The last one went on after a break: its seconds would be of its last part alone.
    assert [line["s"] is None for line in lines] == [False, False, True]
    assert not [*(folder / "stores").glob("*")]
    rows = [row for row in table(lines).splitlines() if row.startswith("| classification |")]
    assert [row.split("|")[3].strip() for row in rows] == ["naive", "retained"]


def test_arms_begin_with_the_same_base_and_are_told_apart(folder: Path) -> None:
    naive, retained, _ = lines_of(folder)
    assert naive["matrix"]["base"] == retained["matrix"]["base"]
    assert naive["key"] != retained["key"]


def test_a_seed_draws_the_world_that_a_run_is_over(folder: Path) -> None:
    assert {line["seed"] for line in lines_of(folder)} == {1}
    worlds = {path: json.loads(path.read_text()) for path in folder.glob("*/world.json")}
    assert [world["seed"] for world in worlds.values()] == [1, 1]


def test_a_finished_run_is_not_run_again(folder: Path) -> None:
    before = (folder / "results.jsonl").read_text()
    run(folder, "classification", "naive,retained")
    assert (folder / "results.jsonl").read_text() == before

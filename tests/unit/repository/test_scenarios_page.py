"""The table of scenarios: its verdicts by hand, and the page as its lines make it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from align.data.scenarios import SCENARIOS
from align.data.scenarios.folder import digest
from benchmarks.campaigns import load_results
from benchmarks.scenario_page import (
    BEGIN,
    END,
    FOLDER,
    comparison,
    measures_table,
    table,
    tables,
    write_page,
)
from benchmarks.scenarios import arguments
from benchmarks.scenarios import runs as planned


def run(arm: str, bwt: float | None, **changes: Any) -> dict[str, Any]:
    return {
        "key": f"editing-{arm}", "scenario": "editing", "data": "generated", "metric": "efficacy",
        "arm": arm, "seed": 0, "rounds": 3, "passed": 2, "AP": 0.5, "LA": 0.75, "BWT": bwt, "FWT": None,
        "general": 1.0, "s": 12.4, **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("naive", "retained", "sentence"),
    [
        (-0.5, -0.05, "10.0 times less"),
        (-0.5, -0.1, "5.0 times less"),
        (-0.5, -0.125, "4.0 times less: **not 5 times**"),
        (-0.1, -0.2, "0.5 times less: **not 5 times**"),
        (-0.5, 0.0, "forgets nothing"),
        (-0.5, 0.2, "forgets nothing"),
        (0.0, -0.2, "naive forgets nothing"),
        (-0.5, None, "not measured"),
    ],
)
def test_forgetting_is_compared(naive: float, retained: float | None, sentence: str) -> None:
    assert comparison([run("naive", naive)], [run("retained", retained)]) == sentence


def test_rows_are_means_over_seeds_and_errors_are_told() -> None:
    lines = [
        run("naive", -0.25),
        run("naive", -0.75, seed=1, passed=1),
        {
            "key": "x",
            "scenario": "editing",
            "data": "generated",
            "arm": "retained",
            "seed": 0,
            "error": "UserError: no",
        },
    ]
    written = table(lines)
    row = next(row for row in written.splitlines() if row.startswith("| editing | "))
    cells = [cell.strip() for cell in row.split("|")[3:-1]]
    assert cells == ["naive", "2", "3/6", "0.500", "0.750", "-0.500", "", "1.000", "12", "", ""]
    assert "`editing`, retained: UserError: no" in written
    assert "`editing`, retained: not run yet." in written


def test_other_measures_are_means_over_the_rounds_they_are_named_after() -> None:
    first = {
        "first": 0.0,
        "general": 1.0,
        "first-chrf": 0.25,
        "second-chrf": 0.75,
        "edit-success": 0.5,
    }
    last = {**first, "second-chrf": 1.0, "edit-success": 0.125}
    matrix = {"base": first, "first": first, "second": last}
    rows = measures_table([run("naive", -0.5, matrix=matrix), run("retained", 0.0)]).splitlines()
    assert rows[2:] == [
        "| editing | naive | 0 | chrf | 0.500 | 0.625 |",
        "| editing | naive | 0 | edit-success | 0.500 | 0.125 |",
    ]
    assert measures_table([run("naive", -0.5)]) == ""


def test_documents_are_compared_with_weights_of_the_same_facts() -> None:
    runs = planned(arguments(["--scenarios", "editing,retrieval"]))
    assert [(each.scenario, each.arm) for each in runs] == [
        ("editing", "naive"), ("editing", "retained"),
        ("retrieval", "naive"), ("retrieval", "in weights"), ("retrieval", "retained"),
    ]  # fmt: skip
    naive, weights, documents = [each.raw() for each in runs[2:]]
    assert [raw["rounds"][0]["steps"] for raw in (naive, weights, documents)] == [80, 80, 0]
    assert (
        naive["defaults"]["replay"]["examples"] == 0.0 < weights["defaults"]["replay"]["examples"]
    )


def test_texts_are_generated_or_real_and_a_seed_draws_another_world(tmp_path: Any) -> None:
    real = ["continual/agnews", "continual/sst2", "continual/amazon"]
    (tmp_path / "continual").mkdir()
    for name in real:
        for split in ("train", "test"):
            rows = [{"text": f"word{i} {split} {name[10:]} text", "label": "a"} for i in range(4)]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{name}_{split}.jsonl").write_text(lines)
    words = ["--scenarios", "classification,relations", "--arms", "naive", "--seeds", "0,1"]
    words += ["--data", str(tmp_path)]
    kinds = {
        texts: [(each.scenario, each.data is not None, each.seed) for each in listed]
        for texts in ("generated", "real", "generated,real")
        if (listed := planned(arguments([*words, "--texts", texts])))
    }
    generated = [(name, False, seed) for seed in (0, 1) for name in ("classification", "relations")]
    assert kinds["generated"] == generated
    assert kinds["real"] == [("classification", True, 0), ("classification", True, 1)]
    assert sorted(kinds["generated,real"]) == sorted(generated + kinds["real"])
    keys = {each.key for each in planned(arguments(words))}
    assert len(keys) == 6
    with pytest.raises(SystemExit):
        arguments([*words, "--texts", "imagined"])


def test_a_seed_draws_the_world_too() -> None:
    first, second = (digest("relations", seed) for seed in (0, 1))
    assert first != second
    assert first == digest("relations")


def test_the_page_is_what_its_lines_make() -> None:
    lines = [*load_results(FOLDER / "scenarios.jsonl").values()]
    text = (FOLDER / "scenarios.md").read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == tables(lines)
    assert {line["scenario"] for line in lines} <= {*SCENARIOS}


def test_a_page_keeps_what_stands_outside_of_the_table(tmp_path: Any) -> None:
    (tmp_path / "scenarios.md").write_text(f"# Before\n\n{BEGIN}\n\nold\n\n{END}\n\nAfter\n")
    write_page(tmp_path, [run("naive", -0.5)])
    text = (tmp_path / "scenarios.md").read_text()
    assert text.startswith("# Before\n")
    assert text.endswith("After\n")
    assert "old" not in text
    assert "| editing | efficacy | naive | 1 | 2/3 |" in text
    assert [*load_results(tmp_path / "scenarios.jsonl")] == ["editing-naive"]

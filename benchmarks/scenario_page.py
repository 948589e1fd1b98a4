"""The page of `benchmarks.scenarios`, from the lines of its results file.

The table lies between markers of the page; what is written outside of them stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.data.scenarios import SCENARIOS
from benchmarks.campaigns import append_result
from benchmarks.scenarios import ARMS, WEIGHTS

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results"
BEGIN, END = "<!-- table: benchmarks.scenarios -->", "<!-- end of the table -->"
TIMES = 5.0
"""Factor by which retained rounds are to forget less than naive ones."""

Line = Mapping[str, Any]


def write_page(folder: Path, lines: Sequence[Line]) -> None:
    """Write the lines and the table into a folder with the page `scenarios.md`."""
    stored, page = folder / "scenarios.jsonl", folder / "scenarios.md"
    stored.write_text("")
    for line in lines:
        append_result(stored, line)
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{tables(lines)}\n\n{END}{after}", encoding="utf-8")


def tables(lines: Sequence[Line]) -> str:
    """Write the table of arms, and below it that of further measures."""
    return "\n\n".join(filter(None, [table(lines), measures_table(lines)]))


COLUMNS: Mapping[str, str] = {
    "AP": ".3f",
    "LA": ".3f",
    "BWT": "+.3f",
    "FWT": "+.3f",
    "general": ".3f",
    "s": ".0f",
    "cpu_s": ".0f",
}
"""Figures of the table, and how a mean is written."""


def table(lines: Sequence[Line]) -> str:
    """Write the Markdown table, naive above retained, and a sentence on each run without a result."""
    figures = [column.replace("_", " ") for column in COLUMNS]
    head = ["scenario", "metric", "arm", "seeds", "gate", *figures, "forgetting"]
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    notes = []
    kinds = [(name, data) for name in SCENARIOS for data in ("generated", "real")]
    for name, data in kinds:
        arms = {arm: _results_of(lines, name, data, arm) for arm in ARMS}
        for arm, runs in arms.items():
            if not runs:
                if data == "generated" and (arm != WEIGHTS or SCENARIOS[name].in_weights):
                    notes.append(f"`{name}`, {arm}: not run yet.")
                continue
            passed = "/".join(str(sum(run[key] for run in runs)) for key in ("passed", "rounds"))
            cells = [_written(mean(runs, column), form) for column, form in COLUMNS.items()]
            compared = "" if arm == "naive" else comparison(arms["naive"], runs)
            shown = name if data == "generated" else f"{name}, real texts"
            row = [shown, runs[0]["metric"], arm, str(len(runs)), passed, *cells, compared]
            rows.append(f"| {' | '.join(row)} |")
    notes += [
        f"`{line['scenario']}`, {line['arm']}: {line['error']}" for line in lines if "error" in line
    ]
    return "\n\n".join(["\n".join(rows), *notes])


def measures_table(lines: Sequence[Line]) -> str:
    """Write what other suites than those of rounds and the general one measured, base and last snapshot.

    Suites that are named after a round, such as ``norsk-chrf``, are one measure, their mean.
    """
    rows = ["| scenario | arm | seed | measure | base | last |", "|---|---|---|---|---|---|"]
    for line in lines:
        snapshots = [measures(line, name) for name in (line.get("matrix") or ())]
        for measure in snapshots[0] if snapshots else ():
            values = [f"{snapshots[index][measure]:.3f}" for index in (0, -1)]
            cells = [line["scenario"], line["arm"], str(line["seed"]), measure, *values]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) if len(rows) > 2 else ""


def measures(line: Line, snapshot: str) -> dict[str, float]:
    """Return the means of a snapshot's further measures by name."""
    scores, rounds = line["matrix"][snapshot], [*line["matrix"]][1:]
    values: dict[str, list[float]] = {}
    for suite, score in scores.items():
        if suite in (*rounds, "general"):
            continue
        prefix = next((f"{name}-" for name in rounds if suite.startswith(f"{name}-")), "")
        values.setdefault(suite.removeprefix(prefix), []).append(score)
    return {name: sum(scores) / len(scores) for name, scores in values.items()}


def comparison(naive: Sequence[Line], retained: Sequence[Line]) -> str:
    """Say by how many times retained rounds forget less than naive ones; forgetting is -BWT, at least 0."""
    losses = [mean(runs, "BWT") for runs in (naive, retained)]
    if None in losses:
        return "not measured"
    lost, kept = (max(0.0, -loss) for loss in losses if loss is not None)
    if lost == 0.0:
        return "naive forgets nothing"
    if kept == 0.0:
        return "forgets nothing"
    factor = f"{lost / kept:.1f} times less"
    return factor if lost >= TIMES * kept else f"{factor}: **not {TIMES:g} times**"


def mean(runs: Sequence[Line], name: str) -> float | None:
    """Return a figure's mean over the runs that have it."""
    values = [run[name] for run in runs if run.get(name) is not None]
    return sum(values) / len(values) if values else None


def _results_of(lines: Sequence[Line], scenario: str, data: str, arm: str) -> list[Line]:
    keys = (scenario, data, arm)
    return [
        line for line in lines
        if (line["scenario"], line["data"], line["arm"]) == keys and "error" not in line
    ]  # fmt: skip


def _written(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"

"""The page and the picture of `benchmarks.methods`, from the lines of its results file.

    python -m benchmarks.method_page                    writes docs/results/methods.md and methods.svg
    python -m benchmarks.method_page --results FILE     takes over the lines of another results file first

The tables lie between markers of the page; what is written outside of them stays. The drawing needs no
library and follows a reader's light or dark scheme.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any

from benchmarks.campaigns import load_results
from benchmarks.method_rows import DEFAULT_ROW, ROWS, MethodRow
from benchmarks.methods import MethodRun, arguments, runs

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results"
BEGIN, END = "<!-- tables: benchmarks.method_page -->", "<!-- end of the tables -->"
MATCHED = 0.03
"""LA that a row may lie below the defaults' and still counts as one that learns as much."""

Results = Mapping[str, Mapping[str, Any]]
"""Lines of the results file by key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """Finished runs of one row at one learning rate."""

    row: MethodRow
    records: Sequence[Mapping[str, Any]]
    results: Results

    def values(self, name: str) -> list[float]:
        """Return a figure of every run that has it."""
        figure = FIGURES.get(name, lambda record, _: record.get(name))
        figures = (figure(record, self.results) for record in self.records)
        return [value for value in figures if value is not None]

    def mean(self, name: str) -> float | None:
        """Return a figure's mean over the runs that have it."""
        values = self.values(name)
        return sum(values) / len(values) if values else None


def beside(record: Mapping[str, Any], row: str, results: Results) -> Mapping[str, Any] | None:
    """Return the run of a reference row under the same seed and learning rate; None if it has not run."""
    run = MethodRun(
        row=row, order="given", **{key: record[key] for key in ("lr", "seed", "steps", "items")}
    )
    return results.get(run.key)


def rollouts(record: Mapping[str, Any], results: Results) -> float | None:
    """Return the mean rollouts to a reward of .9; a round that did not get there counts with its budget."""
    reached = record.get("N90")
    if not reached:
        return None
    budget = 128.0 * record["steps"] * (4 if "joint" in reached else 1)
    costs = [budget if count is None else count for count in reached.values()]
    return sum(costs) / len(costs)


def slowdown(record: Mapping[str, Any], results: Results) -> float | None:
    """Return the mean ratio of these rollouts to those alone, over the rounds after the first."""
    alone = beside(record, "alone", results)
    if alone is None or len(record.get("N90", ())) < 2 or record["row"] == "alone":
        return None
    pairs = [(count, alone["N90"][task]) for task, count in [*record["N90"].items()][1:]]
    ratios = [here / there for here, there in pairs if here and there]
    return sum(ratios) / len(ratios) if ratios else None


def composed(record: Mapping[str, Any], results: Results) -> float | None:
    """Return the held-out compositions as a share of the joint run's."""
    joint = beside(record, "joint", results)
    share = record.get("heldout")
    return None if joint is None or share is None else share / joint["heldout"]


def intransigence(record: Mapping[str, Any], results: Results) -> float | None:
    """Return the joint run's mean over tasks minus the learning accuracy."""
    joint = beside(record, "joint", results)
    return None if joint is None or "BWT" not in record else joint["AP"] - record["LA"]


FIGURES: Mapping[str, Callable[[Mapping[str, Any], Results], float | None]] = {
    "N90": rollouts,
    "slower": slowdown,
    "of joint": composed,
    "IM": intransigence,
}
"""Figures that are computed from a run's line and those of its references."""

COLUMNS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "AP": ("AP", lambda v: f"{v:.3f}"),
    "LA": ("LA", lambda v: f"{v:.3f}"),
    "BWT": ("BWT", lambda v: f"{v:+.3f}"),
    "FM": ("FM", lambda v: f"{v:+.3f}"),
    "FWT": ("FWT", lambda v: f"{v:+.3f}"),
    "IM": ("IM", lambda v: f"{v:+.3f}"),
    "F10": ("1→0", lambda v: f"{v:.3f}"),
    "general": ("general", lambda v: f"{v:.3f}"),
    "heldout": ("composition", lambda v: f"{v:.2f}"),
    "of joint": ("of joint", lambda v: f"{v:.2f}"),
    "N90": ("N90", lambda v: f"{v:,.0f}"),
    "slower": ("N90 / alone", lambda v: f"{v:.2f}"),
    "round_cpu_s": ("CPU s", lambda v: f"{v:.1f}"),
    "cpu_s": ("run CPU s", lambda v: f"{v:.0f}"),
    "peak_mib": ("peak MiB", lambda v: f"{v:,.0f}"),
    "artifacts_mib": ("kept MiB", lambda v: f"{v:.1f}"),
}
"""Title of each figure's column and how its mean is written."""


def lines_at(lr: float, results: Results) -> list[Line]:
    """Return the rows that have a finished run at a learning rate, in the order of the rows."""
    lines = [
        Line(
            row=row,
            results=results,
            records=[
                r for r in results.values()
                if r["row"] == row.name and r["lr"] == lr and "error" not in r
            ],
        )
        for row in ROWS.values()
    ]  # fmt: skip
    return [line for line in lines if line.records]


def is_matched(line: Line, lines: Iterable[Line]) -> bool:
    """Tell if a row learns as much as the defaults, within `MATCHED`."""
    bound = next((o.mean("LA") for o in lines if o.row.name == DEFAULT_ROW), None)
    learnt = line.mean("LA")
    return bound is not None and learnt is not None and learnt >= bound - MATCHED


def matched(lines: Sequence[Line]) -> tuple[list[Line], list[Line]]:
    """Choose one strength of every sequential method: among those that learn as much as the defaults the
    one with the highest AP, else the one that learns the most.

    Returns:
        The lines that learn as much, best first, and those that do not.
    """
    methods: dict[str, list[Line]] = {}
    for line in lines:
        if line.row.kind == "sequence":
            methods.setdefault(line.row.method, []).append(line)
    able, unable = [], []
    for strengths in methods.values():
        candidates = [line for line in strengths if is_matched(line, lines)]
        if candidates:
            able.append(max(candidates, key=lambda line: line.mean("AP") or 0.0))
        else:
            unable.append(max(strengths, key=lambda line: line.mean("LA") or 0.0))
    by_performance = sorted(able, key=lambda line: -(line.mean("AP") or 0.0))
    return by_performance, sorted(unable, key=lambda line: -(line.mean("AP") or 0.0))


def table(lines: Sequence[Line]) -> list[str]:
    """Write a Markdown table of means, with the number of runs behind each line and its worst BWT."""
    titles = [title for title, _ in COLUMNS.values()]
    rows = [f"| row | runs | {' | '.join(titles)} |", f"|---|{'---|' * (len(titles) + 1)}"]
    for line in lines:
        cells = []
        for name, (_, written) in COLUMNS.items():
            mean = line.mean(name)
            cell = "" if mean is None else written(mean)
            if name == "BWT" and len(values := line.values("BWT")) > 1:
                cell += f" ({min(values):+.3f})"
            cells.append(cell)
        name = f"**{line.row.name}**" if line.row.name == DEFAULT_ROW else line.row.name
        rows.append(f"| {name} | {len(line.records)} | {' | '.join(cells)} |")
    return rows


def page(results: Results) -> str:
    """Write what stands between the markers of the page."""
    planned = runs(arguments([]))
    keys = {run.key for run in planned}
    done = {key: record for key, record in results.items() if key in keys}
    errors = [record for record in done.values() if "error" in record]
    parts = [
        f"{len(done)} of {len(planned)} runs are done: "
        f"{len({run.row for run in planned if run.key in done})} of {len(ROWS)} rows have at least one. "
        "A figure is a mean over the runs of its line, and BWT's worst run stands in parentheses."
    ]
    for lr in sorted({run.lr for run in planned}):
        lines = lines_at(lr, done)
        if not lines:
            parts.append(f"## Learning rate {lr:g}\n\nNothing has been run at this rate yet.")
            continue
        able, unable = matched(lines)
        parts += [
            f"## Learning rate {lr:g}, at matched learning",
            f"Strengths whose LA is at most {MATCHED:g} below the defaults', the best of each method:",
            "\n".join(table(able)),
        ]
        if unable:
            parts += ["Methods that learn less at every strength tried:", "\n".join(table(unable))]
        missing = sorted(set(ROWS) - {line.row.name for line in lines})
        parts += [f"### Every row at {lr:g}", "\n".join(table(lines))]
        if missing:
            names = ", ".join(f"`{name}`" for name in missing)
            parts.append(f"Not run yet at this rate: {names}.")
    parts += [f"`{record['key']}` could not run: {record['error']}" for record in errors]
    return "\n\n".join(parts)


def put(text: str, tables: str) -> str:
    """Return a page with its tables between the markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def main(words: Sequence[str] | None = None) -> None:
    """Take over results if they are named, and write the page and the picture."""
    from benchmarks.method_picture import draw

    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--results", type=Path, help="results file to take over first")
    args = options.parse_args(words)
    stored, text = FOLDER / "methods.jsonl", FOLDER / "methods.md"
    if args.results:
        copyfile(args.results, stored)
    results = load_results(stored)
    text.write_text(put(text.read_text(), page(results)))
    (FOLDER / "methods.svg").write_text(draw(lines_at(1e-4, results)))


if __name__ == "__main__":
    main()

"""Claim: nothing is lost, whatever dies, is damaged or is sent.

Every family of faults has a file of its own with its trials, and each try is a line of the results file,
written as the try ends: the same command goes on after a break. A try that lost something is tried again by
the next command, and its newest line counts. ``--page`` writes the table of `docs/results/faults.md`.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import (
    fault_clients,
    fault_crashes,
    fault_hours,
    fault_kills,
    fault_life,
    fault_matrix,
    fault_takeovers,
)
from benchmarks.campaigns import append_result, load_results, several_of
from benchmarks.common import parser, prepare, processor, show
from benchmarks.fault_trial import FaultOutcome, FaultTrial

PAGES = Path(__file__).resolve().parents[1] / "docs" / "results"
BEGIN, END = "<!-- table: benchmarks.faults -->", "<!-- end of the table -->"
TRIALS: Mapping[str, FaultTrial] = {
    **fault_crashes.TRIALS,
    **fault_matrix.TRIALS,
    **fault_kills.TRIALS,
    **fault_hours.TRIALS,
    **fault_takeovers.TRIALS,
    **fault_life.TRIALS,
    **fault_clients.TRIALS,
}
"""Trials of all families by name; a family adds its mapping here."""

Line = Mapping[str, Any]


def main(words: Sequence[str] | None = None) -> None:
    """Run the tries that have no line yet, print the table, and end with 1 where something was lost."""
    prepare()
    args = arguments(words)
    for name in args.trials:
        trial = TRIALS[name]
        for seed in range(args.tries or (trial.quick if args.quick else trial.tries)):
            known = load_results(args.results).get(f"{name}-{seed}")
            if known is not None and known["survived"]:
                continue
            line = attempt(name, trial, seed, args.folder.resolve())
            append_result(args.results, line)
            mark = "survived" if line["survived"] else "LOST"
            print(f"{name} {seed}: {mark}: {line['sentence']}", flush=True)
    lines = [line for line in load_results(args.results).values() if line["trial"] in TRIALS]
    rows = [row.split(" | ") for row in counted(lines)]
    show("Faults", ["test", "tries", "survived", "lost"], rows)
    if args.page:
        write_page(PAGES / "faults.md", lines)
    if any(not line["survived"] for line in lines):
        raise SystemExit(1)


def attempt(name: str, trial: FaultTrial, seed: int, folder: Path) -> dict[str, Any]:
    """Run one try in an empty folder; return its line."""
    work, start = folder / f"{name}-{seed}", time.perf_counter()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        outcome = trial.run(seed, work)
    except Exception as error:  # A trial that breaks has shown that something is not held.
        outcome = FaultOutcome.lost(f"{type(error).__name__}: {error}")
    if outcome.survived:
        shutil.rmtree(work, ignore_errors=True)
    return {
        "key": f"{name}-{seed}",
        "trial": name,
        "seed": seed,
        "survived": outcome.survived,
        "sentence": outcome.sentence,
        "s": round(time.perf_counter() - start, 1),
        "processor": processor(),
    }


def counted(lines: Iterable[Line]) -> list[str]:
    """Return the cells of the table's rows, in the order of `TRIALS`, for trials that have lines."""
    survived: dict[str, list[bool]] = {}
    for line in lines:
        survived.setdefault(line["trial"], []).append(line["survived"])
    return [
        f"{name} | {len(survived[name])} | {sum(survived[name])} | {survived[name].count(False)}"
        for name in TRIALS
        if name in survived
    ]


def table(lines: Sequence[Line]) -> str:
    """Write the Markdown table, what each test tries, and a sentence on every loss."""
    rows = ["| test | tries | survived | lost |", "|---|---|---|---|"]
    rows += [f"| {row} |" for row in counted(lines)]
    present = {line["trial"] for line in lines}
    tried = [f"- **{name}**: {trial.tried}" for name, trial in TRIALS.items() if name in present]
    losses = [
        f"- `{line['key']}` lost: {line['sentence']}" for line in lines if not line["survived"]
    ]
    machines = sorted({line["processor"] for line in lines})
    parts = [rows, tried, losses, [f"Measured on {' and on '.join(machines)}."] if machines else []]
    return "\n\n".join("\n".join(part) for part in parts if part)


def write_page(page: Path, lines: Sequence[Line]) -> None:
    """Replace the table between the markers of the page; what stands outside of them stays."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{table(lines)}\n\n{END}{after}", encoding="utf-8")


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options of a command line; None: this process's."""
    options = parser("Faults of every family: how often nothing was lost.")
    options.add_argument("--trials", type=several_of(TRIALS), default=[*TRIALS])
    options.add_argument(
        "--tries", type=int, help="tries of each trial, in place of its own number"
    )
    options.add_argument("--folder", type=Path, default=Path("runs/faults"))
    options.add_argument("--results", type=Path, default=PAGES / "faults.jsonl")
    options.add_argument("--page", action="store_true", help="write docs/results/faults.md")
    args = options.parse_args(words)
    if args.quick and args.results == PAGES / "faults.jsonl":
        args.results = Path("runs/faults/quick.jsonl")
    if unknown := sorted({*args.trials} - {*TRIALS}):
        options.error(f"no trial {', '.join(unknown)}; known: {', '.join(TRIALS)}")
    return args


if __name__ == "__main__":
    main()

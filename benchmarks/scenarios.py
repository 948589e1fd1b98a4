"""Claim: Keel's retention keeps what every scenario of lifelong learning teaches, and naive rounds do not.

Each file of `configs/scenarios` runs twice through `align.campaign.run_campaign`, with one engine in this
process and no cluster: as it is (``retained``), and without replay and anchors (``naive``). Documents that
a policy reads are compared with weights that learn the same facts, without and with retention. The gate
only observes in all, so that both learn every round; its verdicts are counted. A scenario's world is
generated here if it does not lie in the folder yet. Each run is a line of the results file, so the same
command goes on after a break: a campaign that was cut short resumes from its store, and one that failed
runs again. A line counts as long as its campaign file and its generator are what they were.
`benchmarks.scenario_page` writes the table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from align.data.scenarios import SCENARIOS
from align.data.scenarios.folder import digest, write
from benchmarks.campaigns import Clock, append_result, load_results, several
from benchmarks.common import parser, prepare
from benchmarks.methods import rounded

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig
    from align.gate.evidence import Evidence

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "scenarios"
HOME = "../../runs/scenarios"
"""Folder of the worlds and stores, as the campaign files spell it."""
WEIGHTS = "in weights"
"""Arm of a scenario of outside knowledge: the same facts learnt into the weights, with retention."""
ARMS = ("naive", WEIGHTS, "retained")
TEXTS = ("generated", "real")
NAIVE: Mapping[str, Any] = {
    "replay": {"past": 0.0, "general": 0.0, "examples": 0.0},
    "anchors": {"new": [], "past": [], "general": []},
}
"""Settings of every round of the naive arm, over the file's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenarioRun:
    """One arm of a scenario under one seed, which draws its world and trains its base too."""

    scenario: str
    arm: str
    seed: int
    folder: Path
    """Folder of worlds and stores."""
    data: Path | None = None
    """Folder of real data; None: the world is generated."""
    quick: bool = False
    """Two rounds of two steps, after a base of two."""

    @property
    def key(self) -> str:
        """Name of the run in the results file and of its store, with all that decides its result."""
        content = self.raw() | {"store": None}
        text = json.dumps(content, sort_keys=True).replace(str(self.folder), HOME)
        world = digest(self.scenario, self.seed, self.data)
        code = hashlib.sha256((text + world).encode()).hexdigest()[:10]
        return f"{self.scenario}-{self.arm}-s{self.seed}-{code}" + "-quick" * self.quick

    def raw(self) -> dict[str, Any]:
        """Return the campaign as a mapping, with absolute paths and the arm's settings."""
        from align.config.campaign import overlay

        scenario = SCENARIOS[self.scenario]
        in_weights = scenario.in_weights if self.arm in ("naive", WEIGHTS) else ""
        of_data = scenario.real_campaign if self.data is not None else ""
        name = in_weights or of_data or self.scenario
        text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
        raw: dict[str, Any] = yaml.safe_load(text.replace(HOME, str(self.folder)))
        raw |= {"seed": self.seed}
        if self.arm == "naive":
            raw["defaults"] = overlay(raw["defaults"], dict(NAIVE))
            raw["rounds"] = [overlay(spec, dict(NAIVE)) for spec in raw["rounds"]]
        raw["gate"] = overlay(raw["gate"], {"mode": "observe"})
        return shortened(raw) if self.quick else raw

    def config(self) -> CampaignConfig:
        """Build the campaign."""
        from align.config.campaign import CampaignConfig

        return CampaignConfig.model_validate(self.raw() | {"store": str(self.store)})

    @property
    def store(self) -> Path:
        """Folder of the campaign's store."""
        return self.folder / "stores" / self.key


def shortened(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a campaign of two rounds, two steps each, and eight items a suite, which proves nothing."""
    from align.config.campaign import overlay

    def few(suite: Mapping[str, Any]) -> dict[str, Any]:
        return {**suite, "items": min(8, suite.get("items", 8))}

    return {
        **raw,
        "defaults": overlay(raw["defaults"], {"sampling": {"prompts_per_step": 8}}),
        "rounds": [
            {**spec, "steps": 2, "suite": few(raw["defaults"]["suite"] | spec.get("suite", {}))}
            for spec in raw["rounds"][:2]
        ],
        "suites": [few(suite) for suite in raw["suites"]],
        "gate": {"mode": "observe", "underpowered": "warn"},
    }


def main(words: Sequence[str] | None = None) -> None:
    """Run the campaigns that have no result yet, then write the page."""
    from benchmarks.scenario_page import FOLDER, write_page

    prepare()
    args = arguments(words)
    results = load_results(args.results)
    planned = runs(args)
    for run in planned:
        if "error" not in results.get(run.key, {"error": "not run yet"}):
            continue
        print(f"{run.scenario}, {run.arm}, seed {run.seed}", flush=True)
        try:
            record = rounded(execute(run))
        except Exception as error:  # A scenario that cannot run is a line of the table too.
            record = {"error": f"{type(error).__name__}: {error}"}
            print(f"  {record['error']}", flush=True)
        line = {
            "scenario": run.scenario,
            "data": "generated" if run.data is None else "real",
            "metric": SCENARIOS[run.scenario].metric,
            "arm": run.arm,
            "seed": run.seed,
        }
        append_result(args.results, {"key": run.key, **line, **record})
        shutil.rmtree(run.store, ignore_errors=True)
    current = {run.key for run in planned}
    lines = [line for key, line in load_results(args.results).items() if key in current]
    if args.page:
        write_page(FOLDER, lines)
    print(f"{len(lines)} of {len(planned)} runs have a result in {args.results}")


def runs(args: argparse.Namespace) -> list[ScenarioRun]:
    """List the runs, both arms of a scenario together, the first seed of every scenario first."""
    worlds: list[tuple[str, Path | None]] = []
    if "generated" in args.texts:
        worlds += [(name, None) for name in args.scenarios]
    if args.data is not None and "real" in args.texts:
        real = [name for name in args.scenarios if SCENARIOS[name].has_real(args.data)]
        worlds += [(name, args.data.resolve()) for name in real]
    folder = args.folder.resolve()
    return [
        ScenarioRun(scenario=name, arm=arm, seed=seed, folder=folder, data=data, quick=args.quick)
        for seed in args.seeds
        for name, data in worlds
        for arm in args.arms
        if arm != WEIGHTS or SCENARIOS[name].in_weights
    ]


def execute(run: ScenarioRun) -> dict[str, Any]:
    """Run a campaign to its end, or go on with it, and compute its figures from its store."""
    from align.campaign import run_campaign
    from launch.cluster.engines import in_process_starter

    write(
        run.scenario,
        run.folder,
        run.seed,
        note=lambda text: print(f"  {text}", flush=True),
        steps=2 if run.quick else None,
        data=run.data,
    )
    is_resumed = run.store.exists()
    clock, wall, cpu = Clock(label=run.arm), time.perf_counter(), time.process_time()
    config = run.config()
    with in_process_starter(clock) as start:
        evidence = run_campaign(config, start_engine=start, observer=clock)
    return {
        **figures(evidence),
        # Those of a run that goes on after a break would be of its last part alone.
        "s": None if is_resumed else time.perf_counter() - wall,
        "cpu_s": None if is_resumed else time.process_time() - cpu,
    }


def figures(evidence: Evidence) -> dict[str, Any]:
    """Return the metrics of continual learning, and every snapshot's score on every suite."""
    matrix = evidence.matrix()
    scores = [dict(zip(matrix.suites, row.scores, strict=True)) for row in matrix.rows]
    records = evidence.ledger.rounds()
    return {
        "rounds": len(records),
        "passed": sum((record.report or {}).get("outcome") == "accepted" for record in records),
        "AP": matrix.average_performance(),
        "LA": matrix.learning_accuracy(),
        "BWT": matrix.backward_transfer(),
        "FWT": matrix.forward_transfer(),
        "general": matrix.final.get("general"),
        "general_base": scores[0].get("general"),
        "matrix": {row.name: each for row, each in zip(matrix.rows, scores, strict=True)},
    }


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options of a command line; None: this process's."""
    options = parser("The twelve scenarios of lifelong learning, naive against retained.")
    options.add_argument("--scenarios", type=several(str), default=[*SCENARIOS])
    options.add_argument("--arms", type=several(str), default=[*ARMS])
    options.add_argument("--seeds", type=several(int), default=[0])
    options.add_argument("--folder", type=Path, default=Path("runs/scenarios"))
    options.add_argument("--data", type=Path, help="folder of real data, for further rows")
    options.add_argument(
        "--texts",
        type=several(str),
        default=[*TEXTS],
        help="generated, or real ones of --data, or both",
    )
    options.add_argument("--results", type=Path, default=Path("runs/scenarios/results.jsonl"))
    options.add_argument("--page", action="store_true", help="write docs/results/scenarios.md")
    args = options.parse_args(words)
    if unknown := sorted({*args.scenarios} - {*SCENARIOS}):
        options.error(f"no scenario {', '.join(unknown)}; known: {', '.join(SCENARIOS)}")
    if unknown := sorted({*args.texts} - {*TEXTS}):
        options.error(f"no texts {', '.join(unknown)}; known: {', '.join(TEXTS)}")
    return args


if __name__ == "__main__":
    main()

"""Claim: no method of retention keeps more than Keel's defaults at equal rollouts and equal learning.

Every run is a whole campaign on the tiny world through `align.campaign.run_campaign`, with one engine in
this process and no cluster: four rounds of 45 steps with 128 completions each, 23,040 rollouts, replayed
ones among them. ``joint`` has one round of all tasks with the same rollouts; ``alone`` four campaigns of
one round each. Rows are those of `benchmarks.method_rows`; each run is a line of the results file, and its
campaign resumes after a break. Runs are in the order that makes a coarse table first: one strength of every
method under the first setting, then the other strengths, then further seeds, orders and learning rates.
`benchmarks.method_page` writes the table and the picture.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.campaigns import (
    ORDERS,
    TASKS,
    Clock,
    append_result,
    items_of,
    load_results,
    lost_share,
    several,
    several_of,
    world_config,
    world_suite,
)
from benchmarks.common import parser, prepare
from benchmarks.method_rows import ROWS, MethodRow

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig
    from align.gate.evidence import Evidence
    from align.gate.forgetting import ScoreMatrix

LEVELS = (0.8, 0.9)
"""Rewards at which the rollouts of a round are counted."""
REFERENCES = ("joint", "alone")
"""Kinds of rows that know no order of tasks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodRun:
    """Campaign to run, or four of them for the row ``alone``."""

    row: str
    lr: float
    order: str
    seed: int
    steps: int
    items: int

    @property
    def settings(self) -> MethodRow:
        """Row of the table."""
        return ROWS[self.row]

    @property
    def key(self) -> str:
        """Name of the run in the result file and of its folder, with all that decides its result."""
        return f"{self.row}-lr{self.lr:g}-{self.order}-s{self.seed}-{self.steps}x-{self.items}i"

    def configs(self, stores: Path) -> list[CampaignConfig]:
        """Build the campaigns; all runs evaluate on the same items."""
        tasks = ORDERS[self.order]
        if self.settings.kind == "alone":
            return [self._config(stores / self.key / task, [task]) for task in tasks]
        return [self._config(stores / self.key, tasks)]

    def _config(self, store: Path, tasks: Sequence[str]) -> CampaignConfig:
        from align.config.campaign import overlay

        row, items = self.settings, self.items
        defaults = {
            "optimizer": {"lr": self.lr * row.lr_factor},
            "suite": {"items": items, "temperature": 1.0},
        }
        suites = [
            world_suite("general", "general", items, 1.0, "gate"),
            world_suite("heldout", "heldout", items, 1.0, "watch"),
        ]
        if row.kind == "joint":
            prompts = f"demo://ops?n={2000 * len(tasks)}"
            rounds = [{"name": "joint", "prompts": prompts, "steps": self.steps * len(tasks)}]
            suites += [world_suite(task, task, items, 1.0, "watch") for task in tasks]
        else:
            rounds = [
                {"name": task, "prompts": f"demo://{task}", "steps": self.steps} for task in tasks
            ]
        if len(rounds) > 1:
            suites += [world_suite(f"greedy-{t}", t, items, 0.0, "watch") for t in tasks]
        policy = {} if row.policy is None else {"policy": dict(row.policy)}
        return world_config(
            "methods",
            store,
            seed=self.seed,
            rounds=[{**spec, "rewards": ["exact_match"]} for spec in rounds],
            defaults=overlay(defaults, row.defaults),
            suites=suites,
            others={"rollouts": {"backend": "transformers"}, **policy},
        )


def main() -> None:
    """Run the campaigns that have no result yet, then print the table."""
    prepare()
    args = arguments()
    started = time.perf_counter()
    planned = runs(args)
    results = load_results(args.results)
    missing = [run for run in planned if run.key not in results]
    for number, run in enumerate(missing[: args.most], start=1):
        if args.limit_s is not None and time.perf_counter() - started > args.limit_s:
            break
        print(f"run {number} of {len(missing)}: {run.key}", flush=True)
        try:
            record = rounded(execute(run, args.stores))
        except Exception as error:  # A row that cannot run is a line of the table too.
            record = {"error": f"{type(error).__name__}: {error}"}
            print(f"  {record['error']}", flush=True)
        append_result(args.results, {"key": run.key, **asdict(run), **record})
        shutil.rmtree(args.stores / run.key, ignore_errors=True)
    done = load_results(args.results)
    print(f"{sum(run.key not in done for run in planned)} of {len(planned)} runs are left")


def runs(args: argparse.Namespace) -> list[MethodRun]:
    """Return the runs in their order; see the module's docstring."""
    settings = list(product(args.lrs, args.seeds, args.orders))
    planned = [
        (run.settings.wave if first else 3 + run.settings.wave, run)
        for run, first in _each(args, settings)
    ]
    return [run for _, run in sorted(planned, key=lambda pair: pair[0])]


def _each(
    args: argparse.Namespace, settings: Sequence[tuple[float, int, str]]
) -> Iterator[tuple[MethodRun, bool]]:
    """Yield every run of every setting, and whether the setting is the first."""
    for setting in settings:
        lr, seed, order = setting
        for name in args.rows:
            if ROWS[name].kind in REFERENCES and order != args.orders[0]:
                continue
            run = MethodRun(
                row=name, lr=lr, order=order, seed=seed, steps=args.steps, items=args.items
            )
            yield run, setting == settings[0]


def execute(run: MethodRun, stores: Path) -> dict[str, Any]:
    """Run the campaigns of one line to their ends and compute its figures from their stores."""
    from align.campaign import run_campaign
    from launch.cluster.engines import in_process_starter

    clock, cpu = Clock(label=run.key), time.process_time()
    is_resumed = (stores / run.key).exists()
    reset_peak()
    configs = run.configs(stores)
    with in_process_starter(clock) as start:
        ends = [run_campaign(config, start_engine=start, observer=clock) for config in configs]
    figures = {
        "alone": _alone,
        "joint": _joint,
        "sequence": _sequence,
    }[run.settings.kind](ends, configs)
    return {
        **figures,
        **_reached(ends),
        "round_s": clock.round_s(),
        "round_cpu_s": clock.round_cpu_s(),
        # Those of a run that goes on after a break would be of its last part alone.
        "cpu_s": None if is_resumed else time.process_time() - cpu,
        "peak_mib": None if is_resumed else peak_mib(),
        "artifacts_mib": sum(map(_artifact_bytes, configs)) / 2**20,
    }


def rounded(value: Any) -> Any:
    """Return figures, nested ones too, with four digits after the point: more is below their noise."""
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, float) and math.isnan(value):
        return None
    return round(value, 4) if isinstance(value, float) else value


def _sequence(ends: Sequence[Evidence], configs: Sequence[CampaignConfig]) -> dict[str, Any]:
    """Return the figures of one campaign of several rounds."""
    (evidence,), (config,) = ends, configs
    matrix = evidence.matrix()
    return {
        "AP": matrix.average_performance(),
        "LA": matrix.learning_accuracy(),
        "BWT": matrix.backward_transfer(),
        "FM": matrix.forgetting(),
        "FWT": matrix.forward_transfer(),
        "F10": lost_share(evidence, config),
        **_last(evidence, matrix),
        **_routing(evidence),
    }


def _routing(evidence: Evidence) -> dict[str, Any]:
    """Return each task's routing accuracy at the end; nothing without a bank."""
    from align.report.status import figures_of

    last = [*evidence.accepted("policy").values()][-1]
    shares = {
        task: figures["routing accuracy"]
        for task, figures in figures_of(evidence, last).items()
        if "routing accuracy" in figures
    }
    return {"routing": shares} if shares else {}


def _joint(ends: Sequence[Evidence], configs: Sequence[CampaignConfig]) -> dict[str, Any]:
    """Return the figures of one round of all tasks."""
    (evidence,) = ends
    last = _last(evidence, evidence.matrix())
    tasks = [last["scores"][task] for task in TASKS]
    return {"AP": sum(tasks) / len(tasks), **last}


def _alone(ends: Sequence[Evidence], configs: Sequence[CampaignConfig]) -> dict[str, Any]:
    """Return the figures of one campaign for each task: how well each is learnt from the base."""
    tasks = [config.rounds[0].name for config in configs]
    matrices = [evidence.matrix() for evidence in ends]
    scores = {
        task: matrix.path[-1].scores[matrix.suites.index(task)]
        for task, matrix in zip(tasks, matrices, strict=True)
    }
    return {"LA": sum(scores.values()) / len(scores), "scores": scores}


def _last(evidence: Evidence, matrix: ScoreMatrix) -> dict[str, Any]:
    """Return what the last accepted snapshot scores, with the composition of each held-out pair."""
    rows = {
        row.name: {
            suite: score
            for suite, score in zip(matrix.suites, row.scores, strict=True)
            if not suite.startswith("greedy-")
        }
        for row in matrix.path
    }
    scores = rows[matrix.path[-1].name]
    snapshot = [*evidence.accepted("policy").values()][-1]
    return {
        "general": scores["general"],
        "heldout": scores["heldout"],
        "pairs": _by_task(evidence, snapshot),
        "scores": scores,
        "matrix": rows,
    }


def _by_task(evidence: Evidence, snapshot: str) -> dict[str, float]:
    """Return the share of right answers to the held-out compositions by pair of tasks."""
    results = items_of(evidence, snapshot, "heldout")
    values: dict[str, list[float]] = {}
    for item, value in zip(results.item_ids, results.values, strict=True):
        values.setdefault(item.partition("/")[0], []).append(value)
    return {pair: sum(each) / len(each) for pair, each in sorted(values.items())}


def _reached(ends: Sequence[Evidence]) -> Mapping[str, dict[str, float | None]]:
    """Return the rollouts until each round's reward reached each level; None: not within the round."""
    from align.gate.forgetting import rollouts_to_reach
    from align.report.learning_cost import curves_of

    curves = {name: curve for evidence in ends for name, curve in curves_of(evidence).items()}
    return {
        f"N{level * 100:.0f}": {
            name: rollouts_to_reach(curve, reference=level, share=1.0)
            for name, curve in curves.items()
        }
        for level in LEVELS
    }


def _artifact_bytes(config: CampaignConfig) -> int:
    return sum(path.stat().st_size for path in config.folder.glob("rounds/**/artifacts/*"))


STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Begin to look for the largest resident memory of this process anew, where the system allows it."""
    if CLEAR.exists():
        CLEAR.write_text("5")


def peak_mib() -> float | None:
    """Return the largest resident memory since `reset_peak` in MiB; None where it is not known."""
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    peaks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peaks[0]) / 2**10 if peaks else None


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options of a command line; None: this process's."""
    options = parser("Every method of retention on the tiny world, at equal rollouts.")
    options.add_argument("--rows", type=several_of(ROWS), default=list(ROWS))
    options.add_argument("--seeds", type=several(int), default=[0, 1, 2])
    options.add_argument("--lrs", type=several(float), default=[1e-4, 3e-4])
    options.add_argument("--orders", type=several(str), default=list(ORDERS))
    options.add_argument("--steps", type=int, default=45, help="learner steps of a round")
    options.add_argument("--items", type=int, default=400, help="of every suite")
    options.add_argument("--most", type=int, help="number of runs after which to stop")
    options.add_argument("--limit-s", type=float, help="begin no run after so many seconds")
    folder = Path("runs/benchmarks")
    options.add_argument("--results", type=Path, default=folder / "methods.jsonl")
    options.add_argument("--stores", type=Path, default=folder / "methods")
    args = options.parse_args(words)
    for name, known in (("rows", list(ROWS)), ("orders", list(ORDERS))):
        if unknown := set(getattr(args, name)) - set(known):
            options.error(f"--{name}: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    if args.quick:
        args.rows, args.seeds, args.lrs, args.orders = (
            ["naive", "kl_anchors"],
            [0],
            [1e-4],
            ["given"],
        )
        args.steps, args.items = 6, 60
    return args


if __name__ == "__main__":
    main()

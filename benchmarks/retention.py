"""Claim: under Keel's defaults the tiny world is not forgotten, with as many rollouts as naive GRPO.

Every run is a whole campaign through `align.campaign.run_campaign`: four rounds, each with its own reward,
on a gate that observes, so that naive rounds are accepted too. All rows draw the same number of completions
per step, and replayed prompts replace new ones (only ``ours_long`` has more steps). Runs are appended to a
JSONL file as they end: a benchmark that was killed resumes its last run in the round it was in.

Columns: AP, LA and BWT as in `align.gate.forgetting`, on suites sampled at temperature 1; F10, the share of
an earlier round's items, answered greedily, that were right after that round and are wrong at the end; the
general and the held-out composition suite at the end; seconds of training a round.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.campaigns import (
    ORDERS,
    Clock,
    append_result,
    load_results,
    lost_share,
    several,
    several_of,
    world_config,
    world_suite,
)
from benchmarks.common import parser, prepare, save, show, verdict
from benchmarks.recipes import LR_FACTORS, RECIPES, rounds_of

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig
    from align.round.session import StartEngine
    from rollouts.engines.protocol import RolloutEngine

ROWS: dict[str, dict[str, Any]] = {
    "naive": {
        "replay": {"past": 0.0, "general": 0.0},
        "anchors": {"new": [], "past": [], "general": []},
    },
    "kl_parent": {
        "replay": {"past": 0.0, "general": 0.0},
        "anchors": {"new": [{"to": "parent", "beta": 0.1}], "past": [], "general": []},
    },
    "ewc": {
        "replay": {"past": 0.0, "general": 0.0},
        "retention": [{"name": "ewc", "lambda": 1000.0}],
    },
    "l2_sp": {
        "replay": {"past": 0.0, "general": 0.0},
        "retention": [{"name": "l2_sp", "alpha": 0.01, "to": "parent"}],
    },
    "grouped": {
        "replay": {"past": 0.15, "general": 0.05, "rewards": True, "samples_per_prompt": 8},
        "anchors": {"past": [{"to": "owner", "beta": 1.0}]},
    },
    "ours": {},
    "ours_long": {},
}
"""Settings of each row over Keel's defaults; ``ours:dpo`` is a row with another algorithm."""

METRICS = ("AP", "LA", "BWT", "F10", "general", "heldout", "round_s")


@dataclass(frozen=True, kw_only=True, slots=True)
class Requirement:
    """Bound on the runs of one learning rate."""

    text: str
    lr: float
    rows: tuple[str, ...]
    holds: Callable[[Mapping[str, list[dict[str, float]]]], bool]
    """Function of the metrics of every run, by row."""


def _every(row: str, metric: str, low: float, high: float = 1.0) -> Callable[..., bool]:
    return lambda runs: all(low <= run[metric] <= high for run in runs[row])


def _mean(runs: Sequence[Mapping[str, float]], metric: str) -> float:
    return sum(run[metric] for run in runs) / len(runs)


REQUIREMENTS = (
    Requirement(text="naive forgets: every BWT <= -0.30", lr=1e-4, rows=("naive",),
                holds=_every("naive", "BWT", -1.0, -0.30)),
    Requirement(text="ours: every BWT >= -0.06", lr=1e-4, rows=("ours",),
                holds=_every("ours", "BWT", -0.06)),
    Requirement(text="ours: every AP >= 0.90", lr=1e-4, rows=("ours",),
                holds=_every("ours", "AP", 0.90)),
    Requirement(text="ours: every LA >= 0.93", lr=1e-4, rows=("ours",),
                holds=_every("ours", "LA", 0.93)),
    Requirement(text="ours: every general >= 0.98", lr=1e-4, rows=("ours",),
                holds=_every("ours", "general", 0.98)),
    Requirement(text="mean AP, ours - naive >= 0.15", lr=1e-4, rows=("ours", "naive"),
                holds=lambda runs: _mean(runs["ours"], "AP") - _mean(runs["naive"], "AP") >= 0.15),
    Requirement(text="mean BWT, ours > kl_parent", lr=1e-4, rows=("ours", "kl_parent"),
                holds=lambda runs: _mean(runs["ours"], "BWT") > _mean(runs["kl_parent"], "BWT")),
    Requirement(text="mean AP, ours > naive", lr=3e-4, rows=("ours", "naive"),
                holds=lambda runs: _mean(runs["ours"], "AP") > _mean(runs["naive"], "AP")),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Campaign to run."""

    row: str
    lr: float
    order: str
    seed: int
    steps: int
    items: int

    @property
    def recipe(self) -> str:
        """Row without its algorithm."""
        return self.row.partition(":")[0]

    @property
    def algorithm(self) -> str:
        """Algorithm of the row, GRPO unless it names another one."""
        return self.row.partition(":")[2] or "grpo"

    @property
    def key(self) -> str:
        """Name of the run in the result file and of its store, with all that decides its result."""
        return f"{self.row}-lr{self.lr:g}-{self.order}-s{self.seed}-{self.steps}x-{self.items}i"

    def config(self, stores: Path) -> CampaignConfig:
        """Build the campaign; all runs evaluate on the same items."""
        from align.config.campaign import overlay

        defaults = {
            "optimizer": {"lr": self.lr * LR_FACTORS.get(self.algorithm, 1.0)},
            "suite": {"items": self.items, "temperature": 1.0},
        }
        tasks = ORDERS[self.order]
        return world_config(
            "retention",
            stores / self.key,
            seed=self.seed,
            rounds=rounds_of(self.algorithm, tasks, self.steps, stores / "data"),
            defaults=overlay(overlay(defaults, RECIPES[self.algorithm]), ROWS[self.recipe]),
            suites=[
                world_suite("general", "general", self.items, 1.0, "gate"),
                world_suite("heldout", "heldout", self.items, 1.0, "watch"),
                *(world_suite(f"greedy-{t}", t, self.items, 0.0, "watch") for t in tasks),
            ],
        )


class Kept:
    """Engine that many campaigns use one after another, and that none of them closes.

    Every campaign syncs its own base before it samples, so no weights of the last campaign remain.
    """

    def __init__(self, engine: RolloutEngine) -> None:
        self._engine = engine
        self.generate, self.submit = engine.generate, engine.submit
        self.score, self.sync = engine.score, engine.sync

    def close(self) -> None:
        """Do nothing: the next campaign uses the same engines."""


@contextmanager
def shared_engine(engines: int) -> Iterator[StartEngine]:
    """Start one cluster, and one pool when the first campaign needs it; close both at the end."""
    from align.data.base_model import resolve_model
    from launch.cluster.cluster import connect
    from launch.cluster.engines import engine_spec
    from rollouts.pool.pool import EnginePool

    pools: list[EnginePool] = []

    def start(config: CampaignConfig, model: Path, context: int) -> RolloutEngine:
        if not pools:
            # The pool gets the packaged model, since the first campaign's store is deleted.
            settings = engine_spec(config, resolve_model(config.policy), context)
            pools.append(EnginePool(settings, num_engines=engines))
        return Kept(pools[0])

    with connect(num_engines=engines):
        yield start
        for pool in pools:
            pool.close()


def main() -> None:
    """Run the campaigns that have no result yet, then print all results."""
    prepare()
    args = _arguments()
    wanted = list(_wanted(args))
    results = load_results(args.results)
    missing = [run for run in wanted if run.key not in results]
    if missing:
        with shared_engine(args.engines) as start:
            for number, run in enumerate(missing, start=1):
                print(f"run {number} of {len(missing)}: {run.key}", flush=True)
                metrics = execute(run, args.stores, start)
                append_result(args.results, {"key": run.key, "metrics": metrics})
                shutil.rmtree(args.stores / run.key)
    results = load_results(args.results)
    data = [{**asdict(run), **results[run.key]["metrics"]} for run in wanted]
    report(data, args)
    save(args.json, "retention", args, data)


def execute(run: Run, stores: Path, start: StartEngine) -> dict[str, float]:
    """Run a campaign to its end and compute its figures from its store."""
    from align.campaign import run_campaign

    clock = Clock(label=run.key)
    config = run.config(stores)
    evidence = run_campaign(config, start_engine=start, observer=clock)
    matrix = evidence.matrix()
    final = dict(zip(matrix.suites, matrix.path[-1].scores, strict=True))
    figures = {
        "AP": matrix.average_performance(),
        "LA": matrix.learning_accuracy(),
        "BWT": matrix.backward_transfer(),
        "general": final["general"],
        "heldout": final["heldout"],
    }
    assert None not in figures.values(), f"{run.key}: a cell of the matrix was not measured"
    measured = {name: float(value) for name, value in figures.items() if value is not None}
    return {**measured, "F10": lost_share(evidence, config), "round_s": clock.round_s()}


def report(data: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Print mean and range over the runs of each row and learning rate, then the requirements."""
    rows, notes = [], []
    for lr in args.lrs:
        runs = {row: [d for d in data if d["row"] == row and d["lr"] == lr] for row in args.rows}
        for row, measured in runs.items():
            cells = [_cell([run[name] for run in measured], name) for name in METRICS]
            rows.append([f"{row}, lr {lr:g}", str(len(measured)), *cells])
        for requirement in REQUIREMENTS:
            if requirement.lr == lr and set(requirement.rows) <= set(args.rows):
                notes.append(f"lr {lr:g}: {requirement.text}: {verdict(requirement.holds(runs))}")
    names = ("AP", "LA", "BWT", "F10", "general", "heldout", "s/round")
    show(
        f"Four rounds on the tiny world, {args.steps} steps of 128 completions each "
        f"({args.long_steps} for ours_long): mean [min, max]",
        ["", "runs", *names],
        rows,
        *notes,
    )


def _cell(values: list[float], name: str) -> str:
    digits = 1 if name == "round_s" else 3
    low, high = min(values), max(values)
    return f"{sum(values) / len(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _wanted(args: argparse.Namespace) -> Iterator[Run]:
    for seed, order, lr, row in product(args.seeds, args.orders, args.lrs, args.rows):
        steps = args.long_steps if row == "ours_long" else args.steps
        yield Run(row=row, lr=lr, order=order, seed=seed, steps=steps, items=args.items)


def _arguments() -> argparse.Namespace:
    options = parser("Naive GRPO and Keel's defaults over a sequence of rounds.")
    options.add_argument("--rows", type=several_of(ROWS), default=list(ROWS))
    options.add_argument("--seeds", type=several(int), default=[0, 1])
    options.add_argument("--lrs", type=several(float), default=[1e-4, 3e-4])
    options.add_argument("--orders", type=several(str), default=list(ORDERS))
    options.add_argument("--steps", type=int, default=60, help="learner steps of a round")
    options.add_argument("--long-steps", type=int, default=80, help="those of ours_long")
    options.add_argument("--items", type=int, default=1000, help="of every suite")
    options.add_argument("--engines", type=int, default=1)
    folder = Path("runs/benchmarks")
    options.add_argument("--results", type=Path, default=folder / "retention.jsonl")
    options.add_argument("--stores", type=Path, default=folder / "retention")
    args = options.parse_args()
    algorithms = [f"{row}:{name}" for row in ROWS for name in RECIPES]
    for name, known in (("rows", [*ROWS, *algorithms]), ("orders", list(ORDERS))):
        if unknown := set(getattr(args, name)) - set(known):
            options.error(f"--{name}: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    if args.quick:
        args.rows, args.seeds, args.lrs, args.orders = ["naive", "ours"], [0], [1e-4], ["given"]
        args.steps, args.long_steps, args.items = 2, 2, 60
    return args


if __name__ == "__main__":
    main()

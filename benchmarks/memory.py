"""Claim: a process that runs hundreds of rounds takes no more memory at the end than at the beginning.

Runs a campaign of one-step rounds on the tiny world in one process, engine, learner, gate and ledger
included, and reads the process's resident memory after every verdict. Allocators settle within the first
rounds, so growth is counted from the fourth on as well as from the first.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks.campaigns import world_config, world_suite
from benchmarks.common import parser, prepare, show, verdict

SETTLED = 4
"""Round from which on the memory should stay the same."""
MOST_GROWTH = 0.05
"""Largest growth over all further rounds, as a share."""


class Gauge:
    """Observer that reads this process's resident memory after every verdict."""

    def __init__(self) -> None:
        self.mib: list[float] = []
        self._process = psutil.Process()

    def note(self, text: str) -> None:
        """Ignore a remark."""

    def on_step(self, plan: Any, step: int, metrics: Mapping[str, float]) -> None:
        """Ignore a step."""

    def on_verdict(self, plan: Any, outcome: Any) -> None:
        """Read the memory at the end of a round."""
        self.mib.append(self._process.memory_info().rss / 2**20)


def measured(rounds: int, store: Path) -> list[float]:
    """Run a campaign and return MiB after each of its rounds."""
    from align.campaign import run_campaign
    from launch.cluster.engines import in_process_starter

    shutil.rmtree(store, ignore_errors=True)
    config = world_config(
        "memory",
        store,
        seed=0,
        rounds=[
            {"name": f"r{n}", "prompts": "demo://rev", "rewards": ["exact_match"], "steps": 1,
             "suite": {"prompts": "demo://rev?split=eval&n=8", "items": 8}}
            for n in range(rounds)
        ],
        defaults={"sampling": {"group_size": 4, "prompts_per_step": 4}, "anchors": {"past": []}},
        suites=[world_suite("general", "general", 8, 0.0, "gate")],
        others={"rollouts": {"backend": "transformers"}},
    )  # fmt: skip
    gauge = Gauge()
    with in_process_starter(gauge) as start:
        run_campaign(config, start_engine=start, observer=gauge)
    shutil.rmtree(store, ignore_errors=True)
    return gauge.mib


def main() -> None:
    """Run the campaign and print its memory after some of its rounds."""
    prepare()
    args = arguments()
    mib = measured(args.rounds, args.store)
    first, settled, last = mib[0], mib[SETTLED - 1], mib[-1]
    shown = sorted({1, SETTLED, len(mib) // 4, len(mib) // 2, len(mib)})
    rows = [
        [str(n), f"{mib[n - 1]:.1f}", f"{100 * (mib[n - 1] / settled - 1):+.1f}%"] for n in shown
    ]
    growth = last / settled - 1
    show(
        f"Resident memory over {len(mib)} one-step rounds",
        ["after round", "MiB", f"from round {SETTLED} on"],
        rows,
        f"from the first round on {100 * (last / first - 1):+.1f}%; "
        f"at most {100 * MOST_GROWTH:.0f}% from round {SETTLED} on: {verdict(growth <= MOST_GROWTH)}",
    )


def arguments() -> argparse.Namespace:
    """Read the options of the command line."""
    options = parser("Memory over many rounds.")
    options.add_argument("--rounds", type=int, default=200)
    options.add_argument("--store", type=Path, default=Path("runs/benchmarks/memory"))
    args = options.parse_args()
    if args.quick:
        args.rounds = 6
    return args


if __name__ == "__main__":
    main()

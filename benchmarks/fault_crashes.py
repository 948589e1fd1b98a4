"""Crashes of the driver: SIGKILL at any moment of a campaign, and the campaign that goes on after it.

The driver is `align.campaign.run_campaign` in a process of its own, with one engine in it, forked from a
server that has the libraries loaded: what is killed is a round, not Python's imports.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.campaigns import world_config
from benchmarks.fault_trial import FaultOutcome, FaultTrial

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from align.config.campaign import CampaignConfig

PRELOADED = ["torch", "transformers", "align.campaign", "launch.cluster.engines"]
DEADLINE_S = 600.0
"""Seconds after which a driver that does not end counts as hanging."""


def small_campaign(folder: Path) -> CampaignConfig:
    """Return a campaign of two rounds that samples ahead and keeps a checkpoint after every step."""
    rounds = [
        {"name": name, "prompts": f"demo://{task}?n=60", "rewards": ["exact_match"], "steps": 3}
        for name, task in (("first", "rev"), ("second", "inc"))
    ]
    return world_config(
        "crashes",
        folder / "store",
        seed=0,
        rounds=rounds,
        defaults={
            "sampling": {"group_size": 4, "prompts_per_step": 5, "max_tokens": 6},
            "optimizer": {"lr": 3e-4},
            "replay": {"general_prompts": "demo://general?n=40", "past": 0.2, "buffer": 12},
            "suite": {"items": 30, "temperature": 1.0},
            "checkpoint_every": 1,
        },
        suites=[
            {"name": "general", "prompts": "demo://general", "metric": "exact_match", "items": 30}
        ],
        others={"rollouts": {"backend": "transformers"}},
    )


def drive(folder: Path) -> None:
    """Run the campaign of a folder to its end, its remarks in ``driver.log``."""
    from align.campaign import run_campaign
    from benchmarks.campaigns import Clock
    from launch.cluster.engines import in_process_starter

    log = os.open(folder / "driver.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    clock = Clock(label="driver")
    with in_process_starter(clock) as start:
        run_campaign(small_campaign(folder), start_engine=start, observer=clock)


def started(folder: Path) -> BaseProcess:
    """Start a driver on a folder."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=drive, args=(folder,))
    process.start()
    return process


def finished(folder: Path) -> float:
    """Run a driver to its end; return its seconds.

    Raises:
        RuntimeError: it failed or hangs.
    """
    process, start = started(folder), time.perf_counter()
    process.join(DEADLINE_S)
    if process.exitcode != 0:
        process.kill()
        last = (folder / "driver.log").read_text(encoding="utf-8").splitlines()[-3:]
        raise RuntimeError(f"a driver ended with {process.exitcode}: {' / '.join(last)}")
    return time.perf_counter() - start


def results_of(folder: Path) -> dict[str, Any]:
    """Return what a campaign came to: the state and the snapshot of every round, and production."""
    from align.store.ledger.ledger import Ledger

    ledger = Ledger(small_campaign(folder).ledger_url)
    rounds = {record.name: (record.state, record.candidate) for record in ledger.rounds()}
    return {"rounds": rounds, "production": ledger.alias("production")}


def killed_at_random(seed: int, folder: Path) -> FaultOutcome:
    """Kill a driver at a moment drawn from the length of an undisturbed run, then run to the end."""
    undisturbed = folder.parent / "undisturbed"
    length = undisturbed / "seconds"
    if not length.exists():
        undisturbed.mkdir(exist_ok=True)
        seconds = finished(undisturbed)
        length.write_text(str(seconds))
    moment = random.Random(seed).uniform(0.0, float(length.read_text()))
    process = started(folder)
    process.join(moment)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    if process.exitcode == 0:
        return FaultOutcome.kept(f"it had ended before {moment:.2f} s")
    finished(folder)
    expected, actual = results_of(undisturbed), results_of(folder)
    if actual != expected:
        return FaultOutcome.lost(f"killed after {moment:.2f} s: {actual} in place of {expected}")
    return FaultOutcome.kept(f"killed after {moment:.2f} s; same snapshots and verdicts")


TRIALS: Mapping[str, FaultTrial] = {
    "driver-killed": FaultTrial(
        tried="SIGKILL of the driver at a random moment of a campaign of two rounds; the next run ends "
        "with the same snapshots and verdicts as an undisturbed one.",
        tries=50,
        run=killed_at_random,
    ),
}

"""A day of rounds on a simulated clock, with faults drawn between and within them.

Every hour pairs arrive in the inbox, the schedule is looked at, and a round runs on what fell due: claim,
run, gate, collection and backup are Keel's own. A fault ends the driver before a drawn operation, in one of
the ways of `benchmarks.fault_matrix`, fills the disk, breaks the engine, or sets the clock back. The next
look, a minute later, goes on. After every hour nothing may be damaged, open or left over, and the day ends
with the snapshots of a day without faults.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from benchmarks.fault_crashes import silent
from benchmarks.fault_disk import WatchedDisk
from benchmarks.fault_matrix import CUT, WAYS
from benchmarks.fault_trial import FaultOutcome, FaultTrial

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig

HOURS = 24
START = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
SOURCES = ("rev", "inc", "sort", "rotl")
"""Tasks of the demo world whose pairs arrive in turn."""
PAIRS = 32
"""Pairs of an hour."""
OPERATIONS = 200
"""Operations of an hour's driver among which a fault is drawn."""
FAULTS = (*WAYS, "full disk", "engine", "clock", "none")
DEADLINE_S = 900.0
LOADED = ["torch", "transformers", "align.campaign", "align.learner.learner"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """What happens to one driver."""

    kind: str
    number: int = -1
    """Number of the operation, or of the engine's calls, before which it happens; -1: never."""


def config_of(folder: Path) -> CampaignConfig:
    """Return the campaign of a day: a template of a round every hour, on the pairs that arrived."""
    from align.config.campaign import CampaignConfig

    hourly = {
        "name": "hourly", "every": "0 * * * *", "when": {"new_pairs": PAIRS // 2}, "steps": 1,
        "algorithm": {"name": "dpo", "pairs": "file"},
        "data": {"source": "inbox://taste", "heldout": 0.5},
        "remember": {"newest": 2, "older": 1},
    }  # fmt: skip
    return CampaignConfig.model_validate({
        "name": "day",
        "policy": {"model": "demo://digits"},
        "store": str(folder / "store"),
        "keep": {"accepted": 4, "rejected": 0},
        "rollouts": {"backend": "transformers"},
        "defaults": {
            "sampling": {"group_size": 2, "prompts_per_step": 4, "max_tokens": 6},
            "optimizer": {"lr": 3e-4},
            "replay": {"past": 0.25, "buffer": 6},
            "suite": {"items": 8, "temperature": 1.0},
        },
        "rounds": [hourly],
        "suites": [{"name": "general", "prompts": "demo://general", "metric": "exact_match", "items": 12}],
        "gate": {"mode": "observe"},
    })  # fmt: skip


def drop_pairs(folder: Path, hour: int) -> None:
    """Put the pairs of an hour into the inbox, as a program of somebody's would."""
    from align.data.demo.world import examples
    from align.store.paths import StorePaths

    drop = StorePaths(folder / "store").inbox.drop
    drop.mkdir(parents=True, exist_ok=True)
    source, number = SOURCES[hour % len(SOURCES)], hour // len(SOURCES)
    rows = [
        {"prompt": e.prompt, "chosen": e.answer, "rejected": e.answer[::-1]}
        for e in examples(source, 8 * PAIRS)[number * PAIRS :]
        if e.answer != e.answer[::-1]
    ]
    file = drop / f"{hour}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:PAIRS]))
    os.utime(file, (0, 0))  # It was complete long ago.


def look(folder: Path, now: datetime, fault: Fault) -> None:
    """Claim what is due and run it, as ``keel schedule tick`` does, with a fault on the way."""
    from launch.cluster.engines import in_process_starter

    log = os.open(folder / "driver.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    disk = WatchedDisk(
        folder=folder / "store",
        kept=folder / "kept",
        crash_at=None if fault.kind == "engine" else fault.number,
    )

    def strike() -> None:
        if fault.kind == "power-cut":
            disk.survivors(folder / CUT)
        if fault.kind == "full disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if fault.kind in WAYS:
            WAYS[fault.kind]()

    disk.crash = strike
    quiet = Quiet()
    with disk.watch(), in_process_starter(quiet) as start:
        run(folder, now, BreakingStarter(start, fault), quiet)


def run(folder: Path, now: datetime, start: Any, observer: Any) -> None:
    """Claim what is due, and run it."""
    from align.campaign import run_campaign
    from launch.commands.schedule import claim

    config = config_of(folder)
    if claim(config, now).due:
        run_campaign(config, start_engine=start, observer=observer)


class Quiet:
    """Observer that prints remarks into the log."""

    def note(self, text: str) -> None:
        """Print a remark."""
        print(text, flush=True)

    def on_step(self, plan: Any, step: int, metrics: Mapping[str, float]) -> None:
        """Ignore a step."""

    def on_verdict(self, plan: Any, outcome: Any) -> None:
        """Ignore a verdict."""


class BreakingStarter:
    """Starter of an engine that fails at a drawn call, if that is the fault."""

    def __init__(self, start: Any, fault: Fault) -> None:
        self._start, self._fault = start, fault

    def __call__(self, config: CampaignConfig, model: Path, context: int) -> Any:
        """Start the engine."""
        engine = self._start(config, model, context)
        if self._fault.kind == "engine":
            real, calls = engine.generate, iter(range(1, 1_000_000))

            def generate(requests: Any) -> Any:
                if next(calls) > self._fault.number % 4:
                    raise RuntimeError("the engine has died")
                return real(requests)

            engine.generate = generate
        return engine


def looked(folder: Path, now: datetime, fault: Fault) -> None:
    """Look at the schedule in a process of its own, and put what a power cut leaves in the store's place.

    Raises:
        RuntimeError: it hangs, or ended in an error without a fault.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    process = context.Process(target=look, args=(folder, now, fault))
    process.start()
    process.join(DEADLINE_S)
    if process.exitcode is None or (process.exitcode and fault.kind == "none"):
        process.kill()
        lines = (folder / "driver.log").read_text("utf-8").splitlines()
        raise RuntimeError(f"a driver ended with {process.exitcode}: {' / '.join(lines[-3:])}")
    if (folder / CUT).is_dir():
        rmtree(folder / "store")
        (folder / CUT).rename(folder / "store")
    rmtree(folder / "kept", ignore_errors=True)


def broken_after(folder: Path, hour: int) -> list[str]:
    """Name what is damaged, open or left over once the rounds of an hour are done."""
    import psutil

    from align.gate.evidence import stored_evidence
    from align.upkeep.verify import verify

    evidence = stored_evidence(config_of(folder))
    names = [fault.sentence for fault in verify(evidence, silent).faults]
    names += [f"{r.name} is {r.state}" for r in evidence.ledger.rounds() if not r.closed]
    if (done := len(evidence.committed())) != hour + 1:
        names.append(f"{done} rounds in {hour + 1} hours")
    store = folder / "store"
    hidden = {*store.rglob(".*"), *store.rglob("staging/*")}
    names += [f"{path.relative_to(store)} stayed" for path in hidden if path.name != ".sweep"]
    for process in psutil.process_iter(["cmdline"]):
        if str(folder) in " ".join(process.info["cmdline"] or ()) and process.pid != os.getpid():
            names.append(f"process {process.pid} stayed")
    return names


def results_of(folder: Path) -> dict[str, Any]:
    """Return the state and the snapshot of every round."""
    from align.gate.evidence import stored_evidence

    ledger = stored_evidence(config_of(folder)).ledger
    return {record.name: (record.state, record.candidate) for record in ledger.rounds()}


def undisturbed_day(folder: Path) -> dict[str, Any]:
    """Return the rounds of a day without faults, which runs in this folder unless it has."""
    if not (folder / "done").exists():
        rmtree(folder, ignore_errors=True)
        (folder / "store").mkdir(parents=True)
        looked(folder, START, Fault(kind="none"))
        for hour in range(HOURS):
            drop_pairs(folder, hour)
            looked(folder, START + timedelta(hours=hour + 1, minutes=1), Fault(kind="none"))
        (folder / "done").touch()
    return results_of(folder)


def day(seed: int, folder: Path) -> FaultOutcome:
    """Live through a day with a fault in most hours."""
    expected = undisturbed_day(folder.parent / "undisturbed-day")
    draw, counts = random.Random(seed), dict.fromkeys(FAULTS, 0)
    (folder / "store").mkdir()
    looked(folder, START, Fault(kind="none"))
    for hour in range(HOURS):
        drop_pairs(folder, hour)
        now = START + timedelta(hours=hour + 1, minutes=1)
        kind = draw.choice(FAULTS)
        counts[kind] += 1
        if kind == "clock":
            looked(folder, now - timedelta(minutes=30), Fault(kind="none"))
        elif kind != "none":
            number = draw.randrange(OPERATIONS)
            looked(folder, now, Fault(kind=kind, number=number))
        looked(folder, now + timedelta(minutes=1), Fault(kind="none"))
        if names := broken_after(folder, hour):
            return FaultOutcome.lost(f"hour {hour}, {kind}: {', '.join(names)}")
    if (actual := results_of(folder)) != expected:
        other = [name for name in expected if actual.get(name) != expected[name]]
        return FaultOutcome.lost(f"{other[0]} and {len(other) - 1} more differ")
    story = ", ".join(f"{count} of {kind}" for kind, count in counts.items())
    return FaultOutcome.kept(f"{HOURS} hours with {story}; the same {len(expected)} snapshots")


TRIALS: Mapping[str, FaultTrial] = {
    "simulated-day": FaultTrial(
        tried="24 hours on a simulated clock: pairs arrive, the schedule is looked at, a round runs; the "
        "driver ends before a drawn operation, the disk fills, the engine dies or the clock goes back. "
        "After each hour every hash holds, no round is open and nothing is left over; the day ends with "
        "the snapshots of a day without faults.",
        tries=3,
        run=day,
    ),
}

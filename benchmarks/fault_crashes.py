"""Crashes of the driver: SIGKILL at any moment of a campaign, and the campaign that goes on after it.

The driver is ``keel run FILE`` in a process of its own, forked from a server that has the libraries loaded,
with its engine in the same process: what is killed is a round, and neither Python's imports nor Ray, whose
kills are those of `benchmarks.fault_kills`. The campaign has all that a round may write: samples that are
drawn ahead, a checkpoint after every step, a store with a URL, a round that is repaired, and replay.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.fault_trial import FaultOutcome, FaultTrial

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from align.config.campaign import CampaignConfig
    from align.store.store import Store

PRELOADED = ("align", "fsspec", "launch", "pyarrow", "rewards", "rollouts", "sqlalchemy", "torch")
"""Packages whose modules the server of drivers loads, once an undisturbed driver has named them."""
DEADLINE_S = 900.0
"""Seconds after which a driver that does not end counts as hanging."""
MIRROR_INDEX = ".mirror.json"
"""The one hidden file that a cache of a store with a URL has for good."""


def campaign_file(folder: Path) -> Path:
    """Write the campaign of a try, whose second round forgets the first one and is repaired."""
    from align.data.demo.world import examples

    rows = [{"prompt": e.prompt, "completion": e.answer} for e in examples("inc", 60)]
    (folder / "inc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = {"name": "first", "prompts": "demo://rev?n=20", "steps": 2, "rewards": ["exact_match"]}
    second = {
        "name": "second", "algorithm": "sft", "prompts": "demo://inc?n=20", "steps": 3,
        "rewards": ["exact_match"],
        "data": {"source": "inc.jsonl"}, "suite": {"prompts": "demo://inc?split=eval&n=40"},
        "optimizer": {"lr": 1e-3}, "repair": {"interpolate": {"steps": 2}, "keep": 0.0},
    }  # fmt: skip
    campaign = {
        "name": "crashes",
        "policy": {"model": "demo://digits"},
        "store": f"file://{folder}/far",
        "cache": "home/cache",
        "ledger": "sqlite:///home/ledger.db",
        "rollouts": {"backend": "transformers"},
        "defaults": {
            "sampling": {
                "group_size": 2, "prompts_per_step": 4, "max_tokens": 6, "max_staleness": 1,
            },
            "optimizer": {"lr": 3e-4},
            "replay": {
                "general_prompts": "demo://general?n=20", "past": 0.25, "general": 0.25, "buffer": 6,
            },
            "suite": {"items": 40, "temperature": 1.0},
            "checkpoint_every": 1,
            "meter_every": 10**6,
        },
        "rounds": [first, second],
        "suites": [
            {"name": "general", "prompts": "demo://general", "metric": "exact_match", "items": 40}
        ],
        "gate": {"underpowered": "warn", "alpha": 0.4, "campaign_rounds": 2},
        "keep_rollouts": 1,
    }  # fmt: skip
    file = folder / "campaign.yaml"
    file.write_text(json.dumps(campaign))
    return file


def drive(folder: Path, watched: Callable[[Callable[[], None]], None] | None = None) -> None:
    """Run ``keel run`` on the campaign of a folder, its output in ``driver.log``.

    Args:
        watched: runs what it is given; None: it is run as it is.
    """
    from launch.cli import main
    from launch.cluster import engines

    def local(address: str | None, observer: Any, **options: Any) -> Any:
        return engines.in_process_starter(observer)

    log = os.open(folder / "driver.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    engines.engine_starter = local  # type: ignore[assignment]
    sys.argv = ["keel", "run", str(campaign_file(folder))]
    if watched is None:
        main()
    else:
        watched(main)


def undisturbed(folder: Path) -> None:
    """Run a driver to its end, and write down its seconds and the modules that it has loaded."""
    start = time.perf_counter()
    try:
        drive(folder)
    except SystemExit as ended:
        if ended.code:
            raise
    seconds = time.perf_counter() - start
    names = [name for name in sys.modules if name.partition(".")[0] in PRELOADED]
    (folder / "undisturbed.json").write_text(json.dumps({"seconds": seconds, "modules": names}))


def length_of(folder: Path) -> float:
    """Return the seconds of an undisturbed driver, which runs in this folder unless it has; the server of
    drivers loads its modules."""
    record = folder / "undisturbed.json"
    if not record.exists():
        folder.mkdir(exist_ok=True)
        first = multiprocessing.get_context("spawn").Process(target=undisturbed, args=(folder,))
        first.start()
        wait(first, folder)
        # The first one has loaded the modules on the way.
        multiprocessing.get_context("forkserver").set_forkserver_preload(modules(record))
        again = folder / "again"
        again.mkdir()
        start = time.perf_counter()
        wait(started(again), again)
        content = json.loads(record.read_text()) | {"seconds": time.perf_counter() - start}
        record.write_text(json.dumps(content))
    multiprocessing.get_context("forkserver").set_forkserver_preload(modules(record))
    seconds: float = json.loads(record.read_text())["seconds"]
    return seconds


def modules(record: Path) -> list[str]:
    """Return the modules that an undisturbed driver has loaded."""
    names: list[str] = json.loads(record.read_text())["modules"]
    return names


def started(
    folder: Path, watched: Callable[[Callable[[], None]], None] | None = None
) -> BaseProcess:
    """Start a driver on a folder."""
    process = multiprocessing.get_context("forkserver").Process(
        target=drive, args=(folder, watched)
    )
    process.start()
    return process


def silent(name: str, total: int) -> None:
    """Say nothing of what `verify` reads."""


def wait(process: BaseProcess, folder: Path) -> None:
    """Wait until a driver has run to its end.

    Raises:
        RuntimeError: it failed or hangs.
    """
    process.join(DEADLINE_S)
    if process.exitcode != 0:
        process.kill()
        lines = (folder / "driver.log").read_text("utf-8").splitlines()
        raise RuntimeError(f"a driver ended with {process.exitcode}: {' / '.join(lines[-3:])}")


def config_of(folder: Path) -> CampaignConfig:
    """Read the campaign of a folder."""
    from align.config.file import load_campaign

    return load_campaign(folder / "campaign.yaml").config


def results_of(folder: Path) -> dict[str, Any]:
    """Return what a campaign came to: verdicts, snapshots, measured items, and steps with metrics."""
    from align.store.repairs import repairs_of

    store = _store_of(folder)
    ledger = store.ledger
    return {
        "rounds": {
            record.name: (record.state, record.candidate, [s.outcome for s in repairs_of(record.report)])
            for record in ledger.rounds()
        },
        "production": ledger.alias("production"),
        "items": sorted((e.snapshot, e.suite, e.n) for e in ledger.evaluations()),
        "steps": {
            record.name: sorted(store.paths.round(record.index, record.name).steps())
            for record in ledger.rounds()
        },
    }  # fmt: skip


def faults_of(folder: Path) -> list[str]:
    """Name what is not as it was written, and what nothing will use."""
    from align.gate.evidence import stored_evidence
    from align.store.superseded import unfinished
    from align.upkeep.verify import verify

    home = folder / "home"
    faults = [fault.sentence for fault in verify(stored_evidence(config_of(folder)), silent).faults]
    hidden = {*home.rglob(".*"), *unfinished(home / "cache"), *home.rglob("staging/*")}
    left = [str(p.relative_to(folder)) for p in sorted(hidden) if p.name != MIRROR_INDEX]
    return faults + [f"{path} stayed" for path in left]


def outcome_after(story: str, folder: Path, expected: Mapping[str, Any]) -> FaultOutcome:
    """Run the campaign of a folder to its end, and compare what it came to with an undisturbed one."""
    wait(started(folder), folder)
    if (actual := results_of(folder)) != expected:
        other = [name for name in expected if actual[name] != expected[name]]
        parts = [f"{name}: {actual[name]} in place of {expected[name]}" for name in other]
        return FaultOutcome.lost(f"{story}: {'; '.join(parts)}")
    if faults := faults_of(folder):
        return FaultOutcome.lost(f"{story}: {', '.join(faults)}")
    return FaultOutcome.kept(f"{story}; same snapshots, verdicts and items, nothing stayed")


def killed_at_random(seed: int, folder: Path) -> FaultOutcome:
    """Kill a driver at a moment drawn from the length of an undisturbed run, then run to the end.

    A driver that was over by then is no try: another one starts, with an earlier moment.
    """
    whole = folder.parent / "undisturbed"
    moment = random.Random(seed).uniform(0.0, length_of(whole))
    while True:
        process = started(folder)
        process.join(moment)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            break
        shutil.rmtree(folder)
        folder.mkdir()
        moment *= 0.8
    return outcome_after(f"killed after {moment:.2f} s", folder, results_of(whole))


def _store_of(folder: Path) -> Store:
    from align.store.store import open_ledger, store_to_read

    config = config_of(folder)
    return store_to_read(config, open_ledger(config))


TRIALS: Mapping[str, FaultTrial] = {
    "driver-killed": FaultTrial(
        tried="SIGKILL of `keel run` at a random moment of a campaign of two rounds, one of them repaired, "
        "with samples ahead and a store behind a URL; the next run ends with the same snapshots, verdicts, "
        "items and metrics as an undisturbed one, all hashes hold, and no temporary file stays.",
        tries=50,
        run=killed_at_random,
    ),
}

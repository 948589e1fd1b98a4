"""Kills of a run's processes: SIGKILL and SIGSTOP of whatever a campaign on a Ray cluster has started.

`keel run` works on the demo world with two engines, two learner ranks and a reward in worker processes. At
a drawn moment one process gets a signal. The run goes on or ends with an error, and goes on wherever an
engine died, or where the driver or GCS were stopped for a while; the same command then ends with the
snapshots and verdicts of an undisturbed run, and nothing of either stays behind.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.fault_trial import FaultOutcome, FaultTrial

if TYPE_CHECKING:
    import psutil

    from align.config.campaign import CampaignConfig

KEEL = "from launch.cli import main; main()"
MARK = "KEEL_FAULT"
"""Variable by which the processes of a try are found."""
COMPILED = "torchinductor_"
"""Beginning of the name of torch's cache, which all programs of a user share and keep."""
SHARED = Path("/dev/shm")
DEADLINE_S = 900.0
"""Seconds after which a run counts as hanging."""
LEAVE_S = 20.0
"""Seconds that processes have to end after their run."""
PAUSE_S: Mapping[str, float] = {"driver": 5.0, "gcs": 15.0}
"""Seconds after which a process that was stopped goes on; GCS in tries of even seeds only."""
SILENT = "Ray's control service (GCS)"
"""Beginning of what a run says that waits for a GCS or ends because of it."""
VICTIMS: Mapping[str, str] = {
    "engine": "ray::EngineActor",
    "rank": "ray::RankActor",
    "reward": "rewards.isolation.worker",
    "raylet": "raylet/raylet",
    "gcs": "gcs_server",
    "driver": "launch.cli",
}
"""Text of the command line of each kind of process."""
REWARD = """
def reversed_well(completions, answer, **columns):
    return [float(text.strip() == right) for text, right in zip(completions, answer)]
"""


def campaign_file(folder: Path) -> Path:
    """Write the campaign of a try; return its file."""
    (folder / "reward.py").write_text(REWARD)
    campaign = {
        "name": "kills",
        "store": "store",
        "policy": {"model": "demo://digits", "ranks": 2, "resources": {"cpus": 0.1}},
        "rollouts": {
            "backend": "transformers", "engines": 2, "deadline_s": 30, "resources": {"cpus": 0.1},
        },
        "waits": {"silence_s": 5, "ranks_s": 60, "control_s": 30, "lease_s": 10},
        "defaults": {
            "sampling": {"group_size": 4, "prompts_per_step": 5, "max_tokens": 6},
            "optimizer": {"lr": 3e-4},
            "suite": {"items": 30, "temperature": 1.0},
            "checkpoint_every": 1,
        },
        "rounds": [
            {
                "name": "first", "prompts": "demo://rev?n=60", "steps": 4,
                "rewards": [{"name": "reward.py:reversed_well", "deadline_s": 30, "workers": 1}],
            }
        ],
        "suites": [
            {"name": "general", "prompts": "demo://general", "metric": "exact_match", "items": 30}
        ],
        "gate": {"mode": "observe"},
    }  # fmt: skip
    file = folder / "campaign.yaml"
    file.write_text(json.dumps(campaign))
    return file


def run(file: Path, mark: str) -> subprocess.Popen[bytes]:
    """Start ``keel run`` on a campaign; its output goes into ``run.log`` beside it."""
    scratch = file.parent / "tmp"
    scratch.mkdir(exist_ok=True)
    with (file.parent / "run.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", KEEL, "run", str(file)],
            env={**os.environ, MARK: mark, "TMPDIR": str(scratch), "RAY_TMPDIR": "/tmp"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def members(mark: str) -> Iterator[psutil.Process]:
    """Yield the processes of a try that live."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error):
            is_dead = process.status() == psutil.STATUS_ZOMBIE
            if not is_dead and process.environ().get(MARK) == mark:
                yield process


def victim_of(kind: str, mark: str) -> psutil.Process | None:
    """Find a process of a kind; None if there is none at the moment."""
    import psutil

    for process in members(mark):
        with suppress(psutil.Error):
            if VICTIMS[kind] in " ".join(process.cmdline()):
                return process
    return None


def finished(file: Path) -> float:
    """Run a campaign to its end; return its seconds.

    Raises:
        RuntimeError: it failed or hangs.
    """
    start = time.perf_counter()
    process = run(file, uuid.uuid4().hex)
    try:
        code = process.wait(DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise RuntimeError("the run hangs") from None
    if code != 0:
        last = (file.parent / "run.log").read_text(encoding="utf-8").splitlines()[-3:]
        raise RuntimeError(f"the run ended with {code}: {' / '.join(last)}")
    return time.perf_counter() - start


def results_of(file: Path) -> dict[str, Any]:
    """Return what a campaign came to, and how many results each suite has."""
    from align.store.ledger.ledger import Ledger

    ledger = Ledger(config_of(file).ledger_url)
    return {
        "rounds": {r.name: (r.state, r.candidate) for r in ledger.rounds()},
        "production": ledger.alias("production"),
        "items": sorted((e.snapshot, e.suite, e.n) for e in ledger.evaluations()),
    }


def config_of(file: Path) -> CampaignConfig:
    """Read a campaign."""
    from align.config.file import load_campaign

    return load_campaign(file).config


def leftovers(file: Path, mark: str, shared: set[str]) -> list[str]:
    """Name what a run left behind: processes, shared memory, temporary files."""
    import psutil

    until = time.monotonic() + LEAVE_S
    while (alive := list(members(mark))) and time.monotonic() < until:
        time.sleep(0.2)
    names = []
    for process in alive:
        with suppress(psutil.Error):
            names.append(f"process {' '.join(process.cmdline())[:80]}")
        with suppress(psutil.Error):
            process.kill()
    here = {path.name for path in SHARED.iterdir() if path.is_file()} - shared - _used_by_others()
    return [*names, *(str(SHARED / name) for name in sorted(here))]


def _used_by_others() -> set[str]:
    """Return the names of shared memory that a living process has mapped; those of a try have ended."""
    names = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            lines = maps.read_text("utf-8", "replace").splitlines()
            names |= {line.rpartition("/")[2] for line in lines if str(SHARED) in line}
    return names


def stayed(file: Path) -> list[str]:
    """Name files in the store and in the folder of temporary files that nothing will use."""
    from align.store.superseded import scratch, unfinished

    store = config_of(file).folder
    stages = (store / "staging").glob("*")
    temporary = [p for p in (file.parent / "tmp").iterdir() if not p.name.startswith(COMPILED)]
    files = [*unfinished(store), *scratch(store), *stages, *temporary]
    return [str(path.relative_to(file.parent)) for path in files]


def reached(
    kind: str, seed: int, folder: Path, length: Path
) -> tuple[Path, str, subprocess.Popen[bytes], psutil.Process, float]:
    """Run a campaign to a drawn moment at which a process of a kind lives; return file, mark, the run, that
    process and the moment.

    A run that was over by then shows that the machine is quicker now: ``length``, the file with a run's
    seconds, is corrected, and another one starts.
    """
    while True:
        file, mark, start = campaign_file(folder), uuid.uuid4().hex, time.perf_counter()
        process = run(file, mark)
        moment = random.Random(seed).uniform(0.1, 0.9) * float(length.read_text())
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        while process.poll() is None:
            if (victim := victim_of(kind, mark)) is not None:
                return file, mark, process, victim, moment
            time.sleep(0.05)
        if process.returncode != 0:
            raise RuntimeError(f"the run ended with {process.returncode} before the signal")
        length.write_text(str(min(0.9 * moment, time.perf_counter() - start)))
        shutil.rmtree(folder)
        folder.mkdir()


def struck(kind: str, number: signal.Signals, seed: int, folder: Path) -> FaultOutcome:
    """Send one process of a run a signal at a drawn moment, then run to the end."""
    import psutil

    undisturbed = folder.parent / "undisturbed-kills"
    length = undisturbed / "seconds"
    if not length.exists():
        undisturbed.mkdir(exist_ok=True)
        length.write_text(str(finished(campaign_file(undisturbed))))
    shared = {*os.listdir(SHARED)}
    file, mark, process, victim, moment = reached(kind, seed, folder, length)
    victim.send_signal(number)
    story = f"{number.name} of the {kind} after {moment:.0f} s"
    goes_on_later = kind == "driver" or (kind == "gcs" and seed % 2 == 0)
    is_paused = number == signal.SIGSTOP and goes_on_later
    if is_paused:
        story += f" for {PAUSE_S[kind]:.0f} s"
        time.sleep(PAUSE_S[kind])
        with suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGCONT)
    try:
        code = process.wait(DEADLINE_S)
    except subprocess.TimeoutExpired:
        return FaultOutcome.lost(f"{story}: the run hangs; left {leftovers(file, mark, shared)}")
    if left := leftovers(file, mark, shared):
        return FaultOutcome.lost(f"{story}: exit {code}, and left {left}")
    if code != 0 and (is_paused or kind == "engine"):
        return FaultOutcome.lost(f"{story}: exit {code} where the run has to go on")
    if code != 0 and kind == "gcs" and SILENT not in (file.parent / "run.log").read_text("utf-8"):
        return FaultOutcome.lost(f"{story}: exit {code}, and nothing was said of the GCS")
    finished(file)
    expected, actual = results_of(undisturbed / file.name), results_of(file)
    if actual != expected:
        return FaultOutcome.lost(f"{story}: {actual} in place of {expected}")
    if files := stayed(file):
        return FaultOutcome.lost(f"{story}: exit {code}, and files stayed: {files}")
    return FaultOutcome.kept(f"{story}: exit {code}, then the same results, and nothing stayed")


def trial(kind: str, number: signal.Signals) -> FaultTrial:
    """Describe a trial of one kind of process and one signal."""
    return FaultTrial(
        tried=f"{number.name} of the {kind} at a random moment of `keel run` with two engines, two ranks "
        "and a reward in worker processes; the run goes on or stops with an error, the next one ends with "
        "the same snapshots and verdicts, and no process, shared memory or temporary file stays.",
        tries=5,
        run=partial(struck, kind, number),
    )


TRIALS: Mapping[str, FaultTrial] = {
    f"{kind}-{number.name.lower()}": trial(kind, number)
    for kind in VICTIMS
    for number in (signal.SIGKILL, signal.SIGSTOP)
}

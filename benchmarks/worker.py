"""A process that takes steps when it is told to and sleeps in between, so that whoever is measured next
has the machine to itself.

The measuring side starts a `Worker` and tells it how many steps to take. The worker's own program takes
its `orders` and gives an `answer` to each: one line, ``@ {"wall_s": [...], "cpu_s": [...], ...}``.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from benchmarks.common import Peak, Tree

Moment = tuple[float, float]
"""Wall and CPU seconds of this process."""


@dataclass(kw_only=True)
class Worker:
    """The measuring side's hold on one worker."""

    module: str
    threads: int
    process: subprocess.Popen[str]
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    """Of the process and its children, looked at four times a second."""
    said: dict[str, Any] = field(default_factory=dict)
    """The last answer."""

    @classmethod
    def start(cls, module: str, *words: object, threads: int, **options: object) -> Worker:
        """Start ``python -m module``; the first order waits until it is ready."""
        given = {"threads": threads, **options}
        command = [sys.executable, "-m", module, *map(str, words)]
        command += [text for name, value in given.items() for text in (_flag(name), str(value))]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        return cls(module=module, threads=threads, process=process)

    def steps(self, count: int, *, keep: bool = True) -> None:
        """Take some steps; without ``keep`` they only warm up."""
        assert self.process.stdin is not None and self.process.stdout is not None
        peak = Peak(tree=Tree(self.process.pid))
        with peak.watch():
            # Where nobody is left to read it there is no answer either.
            with suppress(BrokenPipeError):
                print(count, file=self.process.stdin, flush=True)
            answer = next((line for line in self.process.stdout if line.startswith("@")), None)
        if answer is None:
            command = " ".join(map(str, self.process.args))  # type: ignore[arg-type]
            raise RuntimeError(f"a process ended; run it by hand and enter 1 to see why: {command}")
        self.said = json.loads(answer[1:])
        if keep:
            self.wall_s += self.said["wall_s"]
            self.cpu_s += self.said["cpu_s"]
        self.peak_mib = max(self.peak_mib, peak.mib)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def orders() -> Iterator[int]:
    """The worker's side: how many steps to take, one order after the other, until told 0 or nothing."""
    for line in sys.stdin:
        if not int(line):
            return
        yield int(line)


def answer(taken: Sequence[Moment], **told: Any) -> None:
    """The worker's side: the seconds of the steps that were ordered, peak memory, and whatever else."""
    figures = {
        "wall_s": [wall for wall, _ in taken],
        "cpu_s": [cpu for _, cpu in taken],
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "device_mib": _device_mib(),
    }
    print("@", json.dumps(figures | told), flush=True)


def now() -> Moment:
    """The worker's side: the clocks, once the device has done what it was asked for."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def since(start: Moment) -> Moment:
    """The worker's side: seconds since then."""
    wall, cpu = now()
    return wall - start[0], cpu - start[1]


def _device_mib() -> float:
    import torch

    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"

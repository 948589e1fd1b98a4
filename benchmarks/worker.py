"""Process that takes steps on request and sleeps in between, so that the others have the machine.

The measuring side starts a `Worker` and orders a number of steps. The worker's program reads its `orders`
and writes an `answer` to each: one line, ``@ {"wall_s": [...], "cpu_s": [...], ...}``."""

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
    """Worker process, as the measuring side uses it."""

    module: str
    threads: int
    process: subprocess.Popen[str]
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    """Largest memory of the process and its children, read four times a second."""
    answer: dict[str, Any] = field(default_factory=dict)
    """Last answer of the process."""

    @classmethod
    def start(cls, module: str, *words: object, threads: int, **options: object) -> Worker:
        """Start ``python -m module``; the first order waits until it is ready."""
        settings = {"threads": threads, **options}
        command = [sys.executable, "-m", module, *map(str, words)]
        for name, value in settings.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
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
        """Order some steps and wait for them; without ``keep`` they only warm up."""
        assert self.process.stdin is not None and self.process.stdout is not None
        peak = Peak(tree=Tree(self.process.pid))
        with peak.watch():
            # A process that has ended gives no answer, which is handled below.
            with suppress(BrokenPipeError):
                print(count, file=self.process.stdin, flush=True)
            line = next((line for line in self.process.stdout if line.startswith("@")), None)
        if line is None:
            command = " ".join(map(str, self.process.args))  # type: ignore[arg-type]
            raise RuntimeError(f"a process ended; run it by hand and enter 1 to see why: {command}")
        self.answer = json.loads(line[1:])
        if keep:
            self.wall_s += self.answer["wall_s"]
            self.cpu_s += self.answer["cpu_s"]
        self.peak_mib = max(self.peak_mib, peak.mib)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def orders() -> Iterator[int]:
    """Yield the numbers of steps that the worker shall take, until an order of 0 or the end of input."""
    for line in sys.stdin:
        if not int(line):
            return
        yield int(line)


def answer(taken: Sequence[Moment], **more: Any) -> None:
    """Write the worker's answer: seconds of the ordered steps, peak memory, and ``more`` figures."""
    figures = {
        "wall_s": [wall for wall, _ in taken],
        "cpu_s": [cpu for _, cpu in taken],
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "device_mib": _device_mib(),
    }
    print("@", json.dumps(figures | more), flush=True)


def now() -> Moment:
    """Read the worker's clocks, after all work on the device has ended."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def since(start: Moment) -> Moment:
    """Return the worker's seconds since ``start``."""
    wall, cpu = now()
    return wall - start[0], cpu - start[1]


def _device_mib() -> float:
    import torch

    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0

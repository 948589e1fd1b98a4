"""Deadlines of tests, longer in proportion where the machine is slower than the one they were set on.

No test passes or fails by the speed of a machine: a deadline only ends what hangs. Each one is written in
seconds of the reference machine and goes through `patient`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import cache

VARIABLE = "KEEL_TEST_SLOWNESS"
"""Environment variable with the slowness: measured once and handed down to workers and children."""
REFERENCE_S = 0.33
"""Seconds that `WORK` takes on the quiet reference machine."""
WORK = "import asyncio, json, sqlite3, numpy, pydantic; sum(i * i for i in range(2_000_000))"
"""A process start, imports and a loop: what tests that wait mostly wait for."""
MOST = 20.0
"""Largest slowness: a machine slower than that is not waited for."""


def measured() -> float:
    """Seconds of `WORK` here as a multiple of the reference, between 1 and `MOST`; the better of two."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", WORK], check=True)
        seconds.append(time.perf_counter() - start)
    return min(max(min(seconds) / REFERENCE_S, 1.0), MOST)


@cache
def slowness() -> float:
    """Measure how many times slower than the reference this machine is, at least 1."""
    if VARIABLE not in os.environ:
        os.environ[VARIABLE] = f"{measured():.2f}"
    return float(os.environ[VARIABLE])


def patient(seconds: float) -> float:
    """Scale a deadline given in seconds of the reference machine; two significant decimals."""
    return round(seconds * slowness(), 2)

"""A real start of Ray that is too slow at first, and one that is interrupted: nothing outlives either.

The actors of the first one see none of the driver's secrets.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.patience import patient

ROOT = Path(__file__).resolve().parents[2]
SLOW = """
import os, psutil, ray
from launch.cluster.cluster import connect
from launch.cluster.local_ray.sockets import listening_sockets
from launch.cluster.local_ray import start
from tests.patience import patient

start.GROWTH, start.SLOW_S = (1, 2000), 0.0
notes = []
first = set()

def ray_processes():
    children = psutil.Process().children(recursive=True)
    return [p for p in children if not any("sweeper.py" in word for word in p.cmdline())]

def note(text):
    notes.append(text)
    first.update(p.pid for p in ray_processes())

with connect(num_cpus=1, timeout_s=0.3, note=note):
    assert ray.get(ray.remote(num_cpus=1)(lambda: 7).remote()) == 7
    sockets = listening_sockets()
    assert len(sockets) > 3 and all(each.is_loopback for each in sockets), list(map(str, sockets))
    seen = ray.get(ray.remote(num_cpus=1)(lambda: dict(os.environ)).remote())
    assert "OMP_NUM_THREADS" in seen and not {"DATABASE_URL", "GITHUB_PAT"} & seen.keys()
    started = psutil.Process().children(recursive=True)
    assert not first & {p.pid for p in ray_processes()}, "of the first attempt"
(told,) = notes
assert "load average" in told and "trying again with 600 s" in told, told
_, alive = psutil.wait_procs(started, timeout=patient(30))
assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
print("came late and went")
"""
INTERRUPTED = """
from launch.cluster.cluster import connect

with connect(num_cpus=1):
    raise SystemExit("it was started before it was interrupted")
"""


def python(code: str) -> subprocess.Popen[str]:
    """A process of its own that heeds interrupts, whatever the shell of the tests does."""
    environ = {n: v for n, v in os.environ.items() if n not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
    environ |= {
        "DATABASE_URL": "postgresql://a:secret@h/x",
        "GITHUB_PAT": "x",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_a_slow_start_is_tried_again_and_its_actors_see_no_secrets() -> None:
    process = python(SLOW)
    out, err = process.communicate(timeout=patient(90))
    assert process.returncode == 0, out + err
    assert out.strip() == "came late and went"


def test_an_interrupt_ends_the_start_and_all_it_started() -> None:
    process = python(INTERRUPTED)
    _child(process, "gcs_server")
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=patient(60))
    assert process.returncode in (-signal.SIGINT, 130), err
    _, alive = psutil.wait_procs(children, timeout=patient(20))
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def _child(process: subprocess.Popen[str], name: str) -> psutil.Process:
    """Wait for a descendant of this name."""
    while process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if child.name() == name:
                    return child
            except psutil.NoSuchProcess:
                continue
    raise AssertionError(process.communicate())

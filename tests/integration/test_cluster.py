"""A real local cluster: what its actors see, and that nothing of it is left.

In a process of its own, because a process has one Ray connection and other tests here share one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.patience import patient

SCRIPT = """
import os, sys, threading
import psutil, ray
import launch.cluster.cluster
from launch.cluster.cluster import connect
from rollouts.errors import RunError
from tests.patience import patient

def refused(*arguments):
    try:
        with connect(*arguments):
            return ""
    except RunError as error:
        return str(error)

answers = []
thread = threading.Thread(target=lambda: answers.append(refused("local")))
thread.start()
thread.join()
assert "main thread" in answers[0], answers

def seen_by_a_task():
    import launch.cluster.cluster
    return dict(os.environ), launch.cluster.cluster.__file__

with connect(num_engines=3, keep=["JUDGE_API_KEY"]) as cluster:
    assert cluster.local and cluster.num_cpus >= 4, cluster
    assert os.environ["HF_TOKEN"] == "hunter2"
    environ, file = ray.get(ray.remote(seen_by_a_task).remote())
    assert "hunter2" not in environ.values()
    assert environ["JUDGE_API_KEY"] == "asked-for"
    assert environ["RAY_AUTH_MODE"] == "token"
    assert environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert file == launch.cluster.cluster.__file__
    started = psutil.Process().children(recursive=True)
    assert any("raylet" in process.name() for process in started)
    assert "already connected" in refused()
    assert ray.is_initialized(), "a refused connection must not end the one that exists"
assert not ray.is_initialized()
_, alive = psutil.wait_procs(started, timeout=patient(10))
alive = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
assert not alive, alive
print("came and went")
"""


def test_local_cluster_comes_and_goes(tmp_path: Path) -> None:
    dropped = {"RAY_ADDRESS", "RAY_AUTH_MODE"}
    environ = {name: value for name, value in os.environ.items() if name not in dropped}
    environ |= {"HF_TOKEN": "hunter2", "JUDGE_API_KEY": "asked-for"}
    environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(120),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.strip() == "came and went"

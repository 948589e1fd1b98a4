"""A driver that is on no node of the cluster: Ray Client, with a token.

In a process of its own, because a process has one Ray connection and other tests here share one.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.integration.machines import RAY_ENVIRONMENT
from tests.patience import patient

RAY = str(Path(sys.executable).with_name("ray"))
DEADLINE_S = patient(120.0)
AGENTS = ("dashboard-agent-grpc", "dashboard-agent-listen", "runtime-env-agent", "metrics-export")

SCRIPT = """
import sys
from functools import partial
from launch.cluster.cluster import connect
from launch.cluster.preflight import cluster_nodes
from rollouts.engines.protocol import SampleRequest, ScoreRequest, WeightUpdate
from rollouts.errors import RunError
from rollouts.pool.pool import EnginePool
from rollouts.engines.scripted import ScriptedEngine
from rollouts.types import Sampling
from rollouts.engines.vllm import VLLMConfig

def script(prompt_ids, seed):
    return [prompt_ids[0], seed], [-0.5, -0.25]

with connect(sys.argv[1]) as cluster:
    assert not cluster.local and cluster.num_cpus == 3, cluster
    (node,) = cluster_nodes()
    assert node.total["CPU"] == 3 and node.free["CPU"] == 3, node
    config = VLLMConfig(model="scripted", max_num_seqs=8, device="cpu")
    pool = EnginePool(config, num_engines=2, engine_factory=partial(ScriptedEngine, script))
    try:
        report = pool.sync(WeightUpdate(version="r/1", tensors={}))
        assert (report.version, report.num_engines) == ("r/1", 2), report
        requests = [
            SampleRequest(id=str(i), prompt_ids=(i + 5,), n=2, sampling=Sampling(max_tokens=2), seed=i)
            for i in range(6)
        ]
        found = {i: r for batch in pool.submit(requests).arrivals() for i, r in batch}
        assert [found[i].id for i in range(6)] == [str(i) for i in range(6)]
        # Every completion of a request has a seed of its own.
        said = {i: [c.token_ids for c in found[i].completions] for i in found}
        assert said == {i: [(i + 5, i), (i + 5, i + 1)] for i in range(6)}, said
        asked = ScoreRequest(prompt_ids=(5,), completion_ids=(5, 0))
        assert len(pool.score([asked])[0]) == 2
    finally:
        pool.close()
print("came and went")
"""


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def head_node(port: int, environ: Mapping[str, str]) -> Iterator[None]:
    """A cluster of one node that takes drivers at ``port``."""
    # The sockets of a node lie below, and their names may not be long.
    with TemporaryDirectory(prefix="ray-") as folder:
        command = [
            RAY, "start", "--head", "--block", f"--port={free_port()}", "--num-cpus=3",
            f"--ray-client-server-port={port}", "--include-dashboard=false",
            f"--temp-dir={folder}", "--object-store-memory=100000000",
            # A raylet waits 15 s for agents that choose their ports themselves, and then aborts.
            *(f"--{agent}-port={free_port()}" for agent in AGENTS),
        ]  # fmt: skip
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        head = subprocess.Popen(command, env=environ, start_new_session=True, **quiet)
        try:
            deadline = time.monotonic() + DEADLINE_S
            while not listens(port):
                assert head.poll() is None and time.monotonic() < deadline, "no head node"
                time.sleep(0.2)
            yield
        finally:
            head.terminate()
            with suppress(subprocess.TimeoutExpired):
                head.wait(patient(30))
            with suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)


def test_a_driver_on_no_node(tmp_path: Path) -> None:
    port, token = free_port(), tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    environ = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        **RAY_ENVIRONMENT,
    }

    def driver(**changes: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SCRIPT, f"ray://127.0.0.1:{port}"]
        return subprocess.Popen(
            command,
            env=environ | changes,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    # Ray Client knocks for half a minute where it is refused; the other driver comes meanwhile.
    with head_node(port, environ), driver(RAY_AUTH_MODE="disabled") as refused:
        came, error = driver().communicate(timeout=DEADLINE_S)
        assert came.endswith("came and went\n"), error
        refused_out, _ = refused.communicate(timeout=DEADLINE_S)
        assert refused.returncode != 0
        assert "came and went" not in refused_out

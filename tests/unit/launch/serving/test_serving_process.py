"""Servers in processes of their own, in vLLM's place a small one: their logs, their folders, their end."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from align.config.campaign import CampaignConfig
from align.gate.evidence import Evidence
from launch.serving import vllm_server
from launch.serving.serve import Options, serve
from launch.serving.served_alias import ServedAlias
from launch.serving.vllm_server import VLLMStarter
from rollouts.errors import RunError, UserError
from tests.unit.backends import PATIENCE_S
from tests.unit.stores import made

ROOT = Path(__file__).parents[4]

SERVER = """
import json, os, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

def after(name):
    return sys.argv[sys.argv.index(name) + 1]

child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("pids", os.getpid(), child.pid, flush=True)
if json.loads((Path(after("--model")) / "config.json").read_text())["made_by"] == "round0":
    time.sleep(600)

class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
    do_POST = do_GET

HTTPServer(("127.0.0.1", int(after("--port"))), Answer).serve_forever()
"""
"""Never ready with the model of round0; has a child, as vLLM has."""

KEEL_SERVE = """
import sys
from align.config.campaign import CampaignConfig
from launch.serving import vllm_server
from launch.serving.swapper import SwapPolicy
from launch.serving.serve import Options, serve

vllm_server.SERVER = (sys.argv[2],)
config = CampaignConfig.model_validate_json(sys.argv[1])
pace = SwapPolicy(poll_s=0.05)
serve(config, Options(port=0, pace=pace), say=lambda text: print(text, flush=True))
"""


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    """Production is the second of two rounds that were accepted."""
    return made(tmp_path, {"round0": 50}, {"round1": 50})


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """What stands in for vLLM."""
    file = tmp_path / "server.py"
    file.write_text(SERVER)
    return file


def starter(evidence: Evidence, deadline_s: float = PATIENCE_S) -> VLLMStarter:
    return VLLMStarter(
        shelf=ServedAlias(evidence, "production"),
        device="cpu",
        gpu_memory_utilization=0.5,
        extra=(),
        deadline_s=deadline_s,
    )


def pids(log: Path) -> list[int]:
    """Of a server and its child; empty until it says so."""
    line = next((x for x in log.read_text().splitlines() if x.startswith("pids")), "pids")
    return [int(word) for word in line.split()[1:]]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_restart_keeps_the_log_of_the_crash(
    evidence: Evidence, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_server, "SERVER", (str(server),))
    start = starter(evidence)

    async def scene() -> None:
        for _ in range(2):
            running = await start(start.shelf.wanted())
            assert running.alive()
            await running.stop()

    asyncio.run(scene())
    logs = list((evidence.folder / "serving").glob("*.log"))
    assert len({tuple(pids(log)) for log in logs}) == 2
    assert not list((evidence.folder / "serving").glob("scratch-*"))


def test_a_server_that_is_not_ready_in_time_leaves_its_log_alone(
    evidence: Evidence, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_server, "SERVER", (str(server),))
    first = evidence.accepted("policy")["round0"]
    with pytest.raises(RunError, match=r"not ready after 1 s") as caught:
        asyncio.run(starter(evidence, 1.0)(first))
    (log,) = (evidence.folder / "serving").iterdir()
    assert caught.value.where == str(log.absolute())
    assert not any(map(runs, pids(log)))


def sleep_long(config: CampaignConfig, snapshot: str, folder: Path) -> None:
    time.sleep(600)


def test_a_merge_has_a_deadline(
    evidence: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_server, "_merge", sleep_long)
    merging = vllm_server._merge_into(tmp_path / "merged", evidence.config, "ab" * 32, 0.3)
    with pytest.raises(RunError, match=r"of abababababababab could not be merged within 0.3 s"):
        asyncio.run(merging)


def test_a_port_that_is_taken_is_told_before_a_model_is_read(evidence: Evidence) -> None:
    """The model is damaged, which only who reads it knows."""
    shelf = ServedAlias(evidence, "production")
    file = shelf.open(shelf.wanted()).folder / "config.json"
    file.chmod(0o644)
    file.write_text(file.read_text().replace("round1", "round9"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match="cannot listen there"):
            serve(evidence.config, Options(port=port), say=lambda text: None)


def test_nothing_waits_for_a_model_that_is_still_read() -> None:
    """The process of an `asyncio.to_thread` would end after the ten minutes."""
    code = """
import asyncio, time
from launch.serving.vllm_server import _in_background

async def main():
    assert await _in_background(lambda: 3) == 3
    reading = asyncio.create_task(_in_background(lambda: time.sleep(600)))
    await asyncio.sleep(0.1)
    assert not reading.done()

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=PATIENCE_S, check=True)


def test_sigterm_in_the_middle_of_a_swap_leaves_nothing_behind(
    evidence: Evidence, server: Path
) -> None:
    first, second = evidence.accepted("policy").values()
    folder = evidence.folder / "serving"
    command = [sys.executable, "-c", KEEL_SERVE, evidence.config.model_dump_json(), str(server)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = iter(process.stdout.readline, "")
            assert any(f"serving {second[:16]}" in line for line in said)
            evidence.ledger.move_production(first, second, "back")
            assert any(f"{first[:16]} is wanted" in line for line in said)
            until = time.monotonic() + PATIENCE_S
            started = []
            while len(started) < 4 and time.monotonic() < until:
                time.sleep(0.02)
                started = [pid for log in folder.glob("*.log") for pid in pids(log)]
            assert len(started) == 4 and all(map(runs, started))
            process.send_signal(signal.SIGTERM)
            rest = list(said)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
    assert rest[-1] == "stopped\n"
    assert not any(map(runs, started))
    assert not list(folder.glob("scratch-*"))

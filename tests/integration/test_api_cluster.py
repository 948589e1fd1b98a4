"""`align.run` with engines on a Ray cluster of its own: it ends in order by SIGTERM, and then goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import align
from tests.patience import patient
from tests.unit.campaigns import raw_campaign

ROOT = Path(__file__).parents[2]
RUN = """
import json, sys, align

class Tells:
    def on_step(self, event):
        print("step", event.round, event.step, flush=True)

campaign = align.Campaign(**json.loads(sys.argv[1]))
align.run(campaign, Tells(), in_process=False)
print("done", *campaign.rounds()["state"], flush=True)
"""


def start(settings: str) -> subprocess.Popen[str]:
    environ = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-c", RUN, settings],
        cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def alive(processes: list[psutil.Process]) -> list[str]:
    names = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                names.append(" ".join(process.cmdline()))
    return names


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_a_run_over_ray_ends_by_sigterm_and_goes_on(tmp_path: Path) -> None:
    values = raw_campaign(tmp_path, rollouts={"backend": "transformers"})
    settings = json.dumps(values)
    ended = start(settings)
    try:
        assert ended.stdout is not None
        assert ended.stdout.readline() == "step first 0\n"
        started = psutil.Process(ended.pid).children(recursive=True)
        assert any("EngineActor" in name for name in alive(started))
        ended.send_signal(signal.SIGTERM)
        out, error = ended.communicate(timeout=patient(120.0))
    finally:
        ended.kill()
    assert (ended.returncode, "Traceback" in error) == (128 + signal.SIGTERM, False), error
    assert "done" not in out
    deadline = time.monotonic() + patient(30.0)
    while alive(started) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert alive(started) == []
    stored = align.open_store(tmp_path / "store")
    assert stored.rounds()["state"]["first"] == "failed"

    again = start(settings)
    try:
        out, error = again.communicate(timeout=patient(240.0))
    finally:
        again.kill()
    assert (again.returncode, out.splitlines()[-1]) == (0, "done accepted accepted"), error
    assert list(stored.rounds()["attempt"]) == [2, 1]

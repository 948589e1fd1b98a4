"""The Slurm script with stand-ins for Slurm, Ray and Keel; the file of `ray up` against Ray's schema."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SBATCH = ROOT / "launch/slurm/keel.sbatch"
CLUSTER = ROOT / "launch/ray_up/cluster.yaml"

SRUN = """#!/usr/bin/env bash
echo "srun $*" >>"$LOG"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >>"$LOG"
if [[ $1 == show ]]; then printf '%s\\n' node1 node2 node3; fi
"""
HOSTNAME = """#!/usr/bin/env bash
echo "127.0.0.1 10.0.0.1"
"""
RAY = """#!/usr/bin/env python3
import os, signal, socket, sys
log = open(os.environ["LOG"], "a")
signal.signal(signal.SIGTERM, lambda *_: (print("ray ended", file=log, flush=True), os._exit(0)))
print("ray", *sys.argv[1:], os.environ["RAY_AUTH_MODE"], file=log, flush=True)
port = next((w.partition("=")[2] for w in sys.argv if w.startswith("--port=")), None)
if port:
    server = socket.create_server(("127.0.0.1", int(port)))
signal.pause()
"""
KEEL = """#!/usr/bin/env bash
echo "keel $*" >>"$LOG"
until (($(grep -c "^ray start" "$LOG") == 2)); do sleep 0.05; done
stat -c "token %a %s" "$RAY_AUTH_TOKEN_PATH" >>"$LOG"
trap 'echo "keel stopped" >>"$LOG"; exit 143' TERM
if [[ $1 == run && $2 == slow.yaml ]]; then touch "$LOG.slow"; sleep 60 & wait $!; fi
exit 3
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch script; what its commands do is written to a log."""
    stand_ins = {"srun": SRUN, "scontrol": SCONTROL, "hostname": HOSTNAME, "ray": RAY, "keel": KEEL}
    (tmp_path / "bin").mkdir()
    for name, text in stand_ins.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    # A port of this process's own: the script derives it from the job's number.
    return {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LOG": str(tmp_path / "log"),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-3]",
        "SLURM_CPUS_PER_TASK": "4",
        "KEEL_WORKER_RESOURCES": '{"engine": 1}',
    }


def test_the_script_is_bash() -> None:
    subprocess.run(["bash", "-n", SBATCH], check=True)


def test_a_job_from_its_first_line_to_its_last(tmp_path: Path, slurm: dict[str, str]) -> None:
    words = ["bash", SBATCH, "nightly.yaml", "--strict"]
    run = subprocess.run(words, env=slurm, capture_output=True, text=True, timeout=60)
    assert run.returncode == 3, run.stderr
    log = (tmp_path / "log").read_text().splitlines()
    port = 20000 + os.getpid() % 20000
    address = f"127.0.0.1:{port}"
    (head,) = [line for line in log if line.startswith("ray start --head")]
    assert f"--port={port}" in head and head.endswith(" token")
    (worker,) = [line for line in log if line.startswith("ray start --block")]
    assert f'--address={address} --num-cpus=4 --resources={{"engine": 1}}' in worker
    assert any(line.startswith("srun --nodes=2 --ntasks=2 --exclude=node1") for line in log)
    assert f"keel run nightly.yaml --address {address} --wait 180 --strict" in log
    assert "token 600 64" in log
    assert log.count("ray ended") == 2
    assert list((tmp_path / ".ray").iterdir()) == []
    assert not any("requeue" in line for line in log)


@pytest.mark.parametrize(
    ("sent", "code", "requeued"), [(signal.SIGTERM, 143, False), (signal.SIGUSR1, 0, True)]
)
def test_a_job_that_is_stopped(
    tmp_path: Path, slurm: dict[str, str], sent: signal.Signals, code: int, requeued: bool
) -> None:
    """SIGTERM ends it for good; SIGUSR1 says that its time is up, and it is queued again."""
    run = subprocess.Popen(["bash", SBATCH, "slow.yaml"], env=slurm, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "log.slow").exists():
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        run.send_signal(sent)
        assert run.wait(timeout=60) == code
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    log = (tmp_path / "log").read_text().splitlines()
    assert "keel stopped" in log
    assert log.count("ray ended") == 2
    assert list((tmp_path / ".ray").iterdir()) == []
    assert (f"scontrol requeue {os.getpid()}" in log) is requeued


def test_without_a_campaign(slurm: dict[str, str]) -> None:
    run = subprocess.run(["bash", SBATCH], env=slurm, capture_output=True, text=True)
    assert (run.returncode, run.stderr.startswith("usage:")) == (2, True)


def test_no_token_is_written_into_the_files() -> None:
    assert stat.S_IMODE(SBATCH.stat().st_mode) & 0o022 == 0
    assert "/dev/urandom" in SBATCH.read_text()


def test_the_cluster_file_is_one_for_ray_up() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    raw = yaml.safe_load(CLUSTER.read_text())
    validate_config(prepare_config(raw))
    assert raw["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    for commands in (raw["head_start_ray_commands"], raw["worker_start_ray_commands"]):
        (start,) = [line for line in commands if "ray start" in line]
        assert "RAY_AUTH_MODE=token" in start
        subprocess.run(["bash", "-n", "-c", start], check=True)
    assert "--dashboard-host=127.0.0.1" in raw["head_start_ray_commands"][1]

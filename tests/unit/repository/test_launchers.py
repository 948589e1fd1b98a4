"""The Slurm script with stand-ins for Slurm, Ray and Keel; the file of `ray up` against Ray's schema."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.patience import patient

ROOT = Path(__file__).parents[3]
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
echo "${HEAD_ADDRESSES:-fe80::1 127.0.1.1 127.0.0.2 10.0.0.1}"
"""
RAY = """#!/usr/bin/env python3
import os, signal, socket, sys
log = open(os.environ["LOG"], "a")
signal.signal(signal.SIGTERM, lambda *_: (print("ray ended", file=log, flush=True), os._exit(0)))
print("ray", *sys.argv[1:], os.environ["RAY_AUTH_MODE"], file=log, flush=True)
if os.environ.get("RAY_FAILS"):
    sys.exit("ray: something is missing")
port = next((w.partition("=")[2] for w in sys.argv if w.startswith("--port=")), None)
if port:
    server = socket.create_server(("127.0.0.2", int(port)))
signal.pause()
"""
KEEL = """#!/usr/bin/env bash
echo "keel $*" >>"$LOG"
until (($(grep -c "^ray start" "$LOG") == ${STARTS:-2})); do sleep 0.05; done
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
    run = subprocess.run(words, env=slurm, capture_output=True, text=True, timeout=patient(60))
    assert run.returncode == 3, run.stderr
    log = (tmp_path / "log").read_text().splitlines()
    port = 20000 + 3 * (os.getpid() % 4000)
    address = f"127.0.0.2:{port}"
    (head,) = [line for line in log if line.startswith("ray start --head")]
    assert f"--port={port} " in head and head.endswith(" token")
    (worker,) = [line for line in log if line.startswith("ray start --block")]
    assert f"--address={address} --num-cpus=4 " in worker
    assert '--resources={"engine": 1}' in worker
    own = f"--dashboard-agent-listen-port={port + 1} --min-worker-port=0 --max-worker-port=0"
    assert own in head and own in worker and f"--ray-client-server-port={port + 2} " in head
    steps = [line for line in log if line.startswith("srun ") and " ray start " in line]
    assert all(line.startswith("srun --overlap --cpus-per-task=4 ") for line in steps)
    assert any(" --nodes=2 --ntasks=2 --nodelist=node2,node3 " in line for line in steps)
    assert f"keel run nightly.yaml --address {address} --wait 180 --strict" in log
    assert "token 600 64" in log
    assert log.count("ray ended") == 2
    assert list((tmp_path / ".ray").iterdir()) == []
    assert not any("requeue" in line for line in log)


def test_a_learner_on_several_nodes_has_nodes_of_its_own(
    tmp_path: Path, slurm: dict[str, str]
) -> None:
    del slurm["KEEL_WORKER_RESOURCES"]
    run = run_of({**slurm, "KEEL_LEARNER_NODES": "2", "SLURM_JOB_NUM_NODES": "3", "STARTS": "3"})
    assert run.returncode == 3, run.stderr
    log = (tmp_path / "log").read_text().splitlines()
    starts = [line for line in log if line.startswith("srun ") and " ray start " in line]
    roles = {
        line.partition(" --nodelist=")[2].split()[0]: line.partition("--resources=")[2].split(
            " --"
        )[0]
        for line in starts
    }
    learner, engine = '{"learner": 64}', '{"engine": 64}'
    assert roles == {"node1": learner, "node2": learner, "node3": engine}
    assert all("--kill-on-bad-exit=0" in line for line in starts if "--head" not in line)
    assert log.count("ray ended") == 3


@pytest.mark.parametrize("number", ["two", "4", "-1"])
def test_more_learner_nodes_than_there_are(slurm: dict[str, str], number: str) -> None:
    run = run_of({**slurm, "KEEL_LEARNER_NODES": number, "SLURM_JOB_NUM_NODES": "3"})
    assert run.returncode == 2
    assert f"KEEL_LEARNER_NODES is '{number}', and the job has 3 nodes" in run.stderr


def run_of(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = ["bash", SBATCH, "nightly.yaml"]
    return subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=patient(60)
    )


def test_a_head_that_ends_at_once_is_not_waited_for(tmp_path: Path, slurm: dict[str, str]) -> None:
    run = run_of({**slurm, "RAY_FAILS": "1"})
    assert run.returncode == 1
    assert "something is missing" in run.stderr
    assert "the Ray head on node1 ended before it answered" in run.stderr
    assert "keel" not in (tmp_path / "log").read_text()
    assert list((tmp_path / ".ray").iterdir()) == []


def test_the_address_that_other_nodes_reach(tmp_path: Path, slurm: dict[str, str]) -> None:
    for only in ("127.0.1.1", "fe80::1 127.0.0.1"):
        run = run_of({**slurm, "HEAD_ADDRESSES": only})
        assert run.returncode == 1
        assert f"its address is {only}, where no other node" in run.stderr
    run = run_of({**slurm, "HEAD_ADDRESSES": "127.0.1.1", "KEEL_HEAD_ADDRESS": "127.0.0.2"})
    assert run.returncode == 3, run.stderr
    assert "--node-ip-address=127.0.0.2 " in (tmp_path / "log").read_text()


@pytest.mark.parametrize("job", ["1", "3999", "4000", "4294967295"])
def test_ports_are_below_those_that_the_system_gives_away(job: str) -> None:
    (line,) = [line for line in SBATCH.read_text().splitlines() if line.startswith("port=")]
    shell = f"SLURM_JOB_ID={job}; {line}; echo $port"
    port = int(subprocess.check_output(["bash", "-c", shell], text=True))
    assert port >= 20000 and port + 2 < 32768


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say() -> None:
    checked = subprocess.run(["shellcheck", SBATCH], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("sent", "code", "requeued"), [(signal.SIGTERM, 143, False), (signal.SIGUSR1, 0, True)]
)
def test_a_job_that_is_stopped(
    tmp_path: Path, slurm: dict[str, str], sent: signal.Signals, code: int, requeued: bool
) -> None:
    """SIGTERM ends it for good; SIGUSR1 says that its time is up, and it is queued again."""
    run = subprocess.Popen(["bash", SBATCH, "slow.yaml"], env=slurm, start_new_session=True)
    try:
        deadline = time.monotonic() + patient(60)
        while not (tmp_path / "log.slow").exists():
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        run.send_signal(sent)
        assert run.wait(timeout=patient(60)) == code
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


def labels_of(start: str, home: Path) -> str:
    """Run a command of the cluster file with a stand-in for Ray; return the resources that Ray gets."""
    stand_in = home / "keel/.venv/bin/ray"
    stand_in.parent.mkdir(parents=True, exist_ok=True)
    stand_in.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "RAY_HEAD_IP": "192.0.2.10"}
    words = subprocess.check_output(["bash", "-c", start], env=environment, text=True).splitlines()
    (resources,) = [word for word in words if word.startswith("--resources=")]
    return resources.partition("=")[2]


def test_the_cluster_file_is_one_for_ray_up(tmp_path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    raw = yaml.safe_load(CLUSTER.read_text())
    validate_config(prepare_config(raw))
    assert raw["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    for commands in (raw["head_start_ray_commands"], raw["worker_start_ray_commands"]):
        (start,) = [line for line in commands if "ray start" in line]
        assert "RAY_AUTH_MODE=token" in start
        subprocess.run(["bash", "-n", "-c", start], check=True)
        assert labels_of(start, tmp_path) == "{}"
        (tmp_path / "keel").mkdir(exist_ok=True)
        labels = tmp_path / "keel/resources.json"
        labels.write_text('{"learner": 64}')
        assert labels_of(start, tmp_path) == '{"learner": 64}'
        labels.unlink()
    assert "--dashboard-host=127.0.0.1" in raw["head_start_ray_commands"][1]


@pytest.mark.parametrize(
    ("key", "value"),
    [("head_setup_comands", []), ("max_workers", "two"), ("auth", {"ssh_usr": "keel"})],
)
def test_rays_schema_would_notice_a_slip(key: str, value: Any) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(ValidationError):
        validate_config({**yaml.safe_load(CLUSTER.read_text()), key: value})

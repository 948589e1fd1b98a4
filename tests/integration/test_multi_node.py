"""Several nodes: room on them, engines and environments over them, and one that is lost and comes back.

Once with raylets on this machine and scripted engines; and once as people run it: a campaign as a job of a
cluster of three machines, the driver and its learner on the first, an engine on each of the others. Those
have addresses of their own and share the store, as over a network file system, and Keel's code is sent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from align.config.file import load_campaign
from align.gate.evidence import stored_evidence
from tests.integration.machines import (
    RAY_ENVIRONMENT,
    Machine,
    Machines,
    head_command,
    machines,
    why_not,
)
from tests.integration.machines import worker_command as worker
from tests.patience import patient

PATIENCE_S = patient(240.0)
SECRET = "hunter2-of-the-judge"
ADDRESS = "http://127.0.0.1:8265"
ENGINE = '{"engine":1}'
HOLD_S = 3.0
"""Seconds that a step's rewards take at most while the test holds the campaign up."""

RAYLETS = """
import functools, logging, os, socket, time
import ray
from ray.cluster_utils import Cluster
from align.config.campaign import CampaignConfig
from launch.cluster.preflight import check_room, cluster_nodes
from rewards.environments.cluster.placed import PlacedEnvironments
from rewards.environments.environments import DeadEnvironment, WorkerEnvironments
from rewards.environments.plan import EnvironmentLimits, EnvironmentsPlan
from rollouts.episodes.environment import ToolCall
from rollouts.engines.protocol import SampleRequest, WeightUpdate
from rollouts.errors import UserError
from rollouts.pool.pool import EnginePool
from rollouts.engines.scripted import ScriptedEngine
from rollouts.types import Prompt, Sampling
from rollouts.engines.vllm import VLLMConfig
from tests.patience import patient

def campaign(engines, **resources):
    return CampaignConfig.model_validate({
        "name": "nodes", "policy": {"model": "demo://digits"},
        "rollouts": {"engines": engines, "resources": {"custom": {"engine": 1}, **resources}},
        "rounds": [{"name": "r", "prompts": "demo://rev", "rewards": ["exact_match"], "steps": 1}],
    })

def refused(config, **told):
    try:
        check_room(config, **told)
    except UserError as error:
        return str(error)

def engine():
    return ScriptedEngine(lambda ids, seed: (time.sleep(0.05), ([seed], [-0.5]))[1])

def ask(pool, step):
    requests = [
        SampleRequest(id=f"{step}/{i}", prompt_ids=(1,), n=1, seed=i, sampling=Sampling(max_tokens=1))
        for i in range(24)
    ]
    said = [result.completions[0].token_ids for result in pool.generate(requests)]
    assert said == [(i,) for i in range(24)], said

def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]

def agent_ports():
    # A raylet waits 15 s for agents that choose their ports themselves, and then aborts.
    agents = ("metrics_agent", "dashboard_agent_listen", "runtime_env_agent", "metrics_export")
    return {f"{agent}_port": free_port() for agent in agents}

def add_engine_node():
    return cluster.add_node(num_cpus=1, resources={"engine": 1, "desk": 1}, **agent_ports())

def desks(**limits):
    return EnvironmentsPlan(environments={"": "desk.py:Desk"}, limits=EnvironmentLimits(**limits))

def opened(environments, key):
    prompt = Prompt(id=key, text="Go.", columns={"note": f"note {key}"})
    assert environments.open(key, prompt).result(patient(120)) == "Read."

def read(environments, key, **arguments):
    return environments.call(key, [ToolCall("read", arguments)])

def acted(environments, key):
    opened(environments, key)
    (seen,) = read(environments, key).result(patient(60))
    return seen._replace(seconds=0.0), environments.close(key, ()).result(patient(60))

def node_of(environments, key):
    actor = environments._episodes[key].host._actor
    return ray._private.state.actors(actor._actor_id.hex())["Address"]["NodeID"]

with WorkerEnvironments(desks()) as here:
    expected = [acted(here, key) for key in "pqr"]

head = {"num_cpus": 0, "include_dashboard": False, **agent_ports()}
cluster = Cluster(initialize_head=True, head_node_args=head)
one, two = add_engine_node(), add_engine_node()
ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
assert len(cluster_nodes()) == 3
assert refused(campaign(2)) is None
assert "room for 2 of 3 x engine (1 CPU, 1 engine each)" in refused(campaign(3))
assert "one engine asks for 2 CPU; the largest node has 1" in refused(campaign(1, cpus=2))
assert "one engine asks for GPU, which no node has" in refused(campaign(1, gpus=1))

pool = EnginePool(
    VLLMConfig(model="scripted", max_num_seqs=4, device="cpu"), num_engines=2,
    bundle={"CPU": 1, "engine": 1}, engine_factory=engine,
)
pool.wait_ready()
assert "other work has taken the room" in refused(campaign(2))
pool.sync(WeightUpdate(version="v1"))
ask(pool, 0)
environments = PlacedEnvironments(desks(workers=2, bundle={"desk": 1}))
assert [acted(environments, key) for key in "pqr"] == expected
for key in "abcd":
    opened(environments, key)
homes = {key: node_of(environments, key) for key in "abcd"}
assert sorted(homes.values()).count(two.node_id) == 2 == list(homes.values()).count(one.node_id)
lost = [key for key in homes if homes[key] == two.node_id]
hanging = read(environments, lost[0], seconds=1000.0)
cluster.remove_node(two, allow_graceful=False)
for key in "abcd":
    try:
        (seen,) = (hanging if key == lost[0] else read(environments, key)).result(patient(60))
        assert key not in lost and seen.text.startswith(f"note {key}"), (key, seen)
    except DeadEnvironment as dead:
        assert key in lost and "on a node that held it is lost" in dead.what, (key, dead)
assert acted(environments, "p") == expected[0]
assert environments.metrics["environment/lost_processes"] == 1.0
deadline = time.monotonic() + patient(60)
while not pool.metrics.restarts:  # The engine may outlive its raylet for a moment.
    ask(pool, 1)
    assert time.monotonic() < deadline, "the lost engine goes on"
assert pool.metrics.restarts == 1, pool.metrics
assert pool.sync(WeightUpdate(version="v2")).num_engines == 1
back = add_engine_node()
deadline = time.monotonic() + patient(120)
while any(slot.starting for slot in pool._fleet.slots):
    ask(pool, 2)
    assert time.monotonic() < deadline, "no engine on the node that came"
assert pool.sync(WeightUpdate(version="v3")).num_engines == 2
ask(pool, 3)
assert pool.metrics.failed_requests == 0
while not all(running.is_ready for running in environments._hosts.values()):
    time.sleep(0.1)
    assert time.monotonic() < deadline, "no environments on the node that came"
opened(environments, "s")
assert node_of(environments, "s") == back.node_id
environments.shutdown()
pool.close()
assert refused(campaign(2), wait_s=patient(60)) is None, "the pool gave its room back"
ray.shutdown()
cluster.shutdown()
print("lost and found")
"""

DESK = '''
import random, time

class Desk:
    """A desk with a note."""

    def reset(self, note, **row):
        self.note, self.reads = note, 0
        return "Read."

    def read(self, seconds: float = 0.0) -> str:
        """Read the note.

        Args:
            seconds: How slowly.
        """
        time.sleep(seconds)
        self.reads += 1
        return f"{self.note} {random.random()}"

    def get_reward(self) -> float:
        return float(self.reads)
'''


def test_raylets_come_and_go(tmp_path: Path) -> None:
    ours = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    root = str(Path(__file__).parents[2])
    (tmp_path / "desk.py").write_text(DESK)
    run = subprocess.run(
        [sys.executable, "-c", RAYLETS],
        cwd=tmp_path,
        env=ours | RAY_ENVIRONMENT | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.strip().endswith("lost and found")


REWARD = """
import os, time
from pathlib import Path

def unhurried(completions, answer):
    until = time.monotonic() + {seconds}
    while Path({hold!r}).exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert os.environ["JUDGE_API_KEY"] == {secret!r}
    return [float(text.strip() == right) for text, right in zip(completions, answer)]
"""

END = "\f\n"
COMMANDS = f"""
import json, sys
from launch.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["keel", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (words, end.code)
    print(end={END!r})
"""
"""Several commands one after the other in one process, which imports Ray once."""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o644)
    ours = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return (
        ours
        | RAY_ENVIRONMENT
        | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            # A machine without power says nothing: it is missed after three silent checks.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": f"{patient(5000):.0f}",
            "RAY_health_check_failure_threshold": "3",
            "RAY_agent_register_timeout_ms": f"{patient(120_000):.0f}",
            "RAY_worker_register_timeout_seconds": f"{patient(120):.0f}",
            "OMP_NUM_THREADS": "1",
        }
    )


@pytest.fixture
def net(tmp_path: Path, environ: dict[str, str]) -> Iterator[Machines]:
    with machines(tmp_path, environ) as made:
        yield made


def write_campaign(folder: Path) -> Path:
    hold = folder / "hold"
    text = REWARD.format(hold=str(hold), seconds=HOLD_S, secret=SECRET)
    (folder / "unhurried.py").write_text(text)
    (folder / "env").mkdir()
    (folder / "env" / "JUDGE_API_KEY").write_text(SECRET + "\n")
    (folder / "env" / "JUDGE_API_KEY").chmod(0o600)
    content = {
        "name": "three-machines",
        "policy": {"model": "demo://digits"},
        "store": str(folder / "store"),
        "rollouts": {
            "engines": 2, "max_num_seqs": 64, "kv_cache_mb": 64,
            "resources": {"custom": {"engine": 1}},
        },
        "defaults": {
            "sampling": {"group_size": 4, "prompts_per_step": 8, "max_tokens": 6},
            "suite": {"items": 60, "temperature": 1.0},
        },
        "rounds": [
            {"name": "first", "prompts": "demo://rev", "steps": 40,
             "rewards": [{"name": "unhurried.py:unhurried", "environment": ["JUDGE_API_KEY"]}]},
        ],
        "gate": {"mode": "observe"},
    }  # fmt: skip
    path = folder / "campaign.yaml"
    path.write_text(json.dumps(content))
    return path


def until(reached: Callable[[], bool], process: subprocess.Popen[Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert process.poll() is None, "".join(filter(None, process.communicate()))
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.1)


def steps(path: Path) -> list[dict[str, float]]:
    file = path.parent / "store/rounds/00-first/attempt-1/metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def has_engine(machine: Machine) -> bool:
    for child in psutil.Process(machine.process.pid).children(recursive=True):
        with suppress(psutil.Error):  # It may end while it is looked at.
            if "EngineActor" in " ".join(child.cmdline()):
                return True
    return False


@pytest.mark.slow
@pytest.mark.skipif((reason := why_not()) is not None, reason=reason or "")
@pytest.mark.timeout(600)
def test_a_machine_is_lost_and_comes_back(
    tmp_path: Path, net: Machines, environ: dict[str, str]
) -> None:
    path = write_campaign(tmp_path)
    head = net.add("head", head_command(cpus=0))
    net.add("one", worker(1, ENGINE))
    lost = net.add("two", worker(1, ENGINE))
    keel = (sys.executable, "-c", "from launch.cli import main; main()")
    root = str(Path(__file__).parents[2])

    def on_head(*command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            head.run(tmp_path, *command),
            env=environ | {"PYTHONPATH": root},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def asked(*words: str) -> subprocess.Popen[str]:
        return on_head(*keel, *words, "--address", ADDRESS)

    log = tmp_path / "head.log"
    until(lambda: "Ray runtime started" in log.read_text(), head.process, "the head")
    job = asked(
        "submit", path.name, "--include", "unhurried.py", "--id", "first-job", "--follow",
        "--env", "JUDGE_API_KEY", "--env-dir", str(tmp_path / "env"), "--wait", f"{PATIENCE_S:g}",
    )  # fmt: skip
    until(lambda: len(steps(path)) >= 2, job, "the first steps")

    (tmp_path / "hold").touch()
    lost.kill()
    before = len(steps(path))
    # The first of the two may have had all its samples; the second is the other engine's alone.
    until(lambda: len(steps(path)) >= before + 2, job, "steps without the lost machine")
    back = net.add("two", worker(1, ENGINE))
    until(lambda: has_engine(back), job, "an engine on the machine that came back")
    (tmp_path / "hold").unlink()

    out, error = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 0, out + error
    assert "its mode is 0600 now" in error
    assert "SUCCEEDED" in error
    evidence = stored_evidence(load_campaign(path).config)
    (first,) = evidence.ledger.rounds()
    assert (first.state, first.attempt) == ("accepted", 1)
    assert [step["step"] for step in steps(path)] == list(range(40))
    assert all(step["parity/max_abs_diff"] < 1e-4 for step in steps(path))

    commands = (
        ("jobs", "list"),
        # One that waits for more room than there is, until it is stopped.
        (
            "submit", path.name, "--include", "unhurried.py", "--id", "second-job", "--wait", "600",
            "--set", f"store={tmp_path / 'other'}", "--set", "rollouts.engines=9",
        ),
        ("jobs", "status", "second-job"),
        ("jobs", "stop", "second-job"),
        ("jobs", "status", "second-job"),
        ("jobs", "status", "first-job"),
    )  # fmt: skip
    words = json.dumps([[*command, "--address", ADDRESS, "--json"] for command in commands])
    answered = on_head(sys.executable, "-c", COMMANDS, words)
    listed, problem = answered.communicate(timeout=PATIENCE_S)
    assert answered.returncode == 0, listed + problem
    (only,), _, waiting, stopped, still, first_job = map(json.loads, listed.split(END)[:-1])
    assert (only["id"], only["status"], only["campaign"]) == (
        "first-job",
        "SUCCEEDED",
        "three-machines",
    )
    assert waiting["status"] in ("PENDING", "RUNNING")
    assert (stopped["status"], still["status"]) == ("STOPPED", "STOPPED")
    assert first_job["status"] == "SUCCEEDED"
    logs = "".join(f.read_text(errors="replace") for f in (tmp_path / "head-ray").rglob("*.log"))
    assert SECRET not in out + error + listed + logs

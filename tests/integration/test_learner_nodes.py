"""Ranks on machines that share no disk: the numbers of one rank, and machines that are lost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.machines import (
    RAY_ENVIRONMENT,
    Machines,
    head_command,
    machines,
    why_not,
    worker_command,
)
from tests.patience import patient

PATIENCE_S = patient(400.0)
LEARNER = '{"learner":1}'
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif((reason := why_not()) is not None, reason=reason or ""),
]

BEGINNING = """
import os, sys, time
from pathlib import Path
import pytest, ray, torch
from align.config.campaign import PolicyConfig
from align.config.policy import WaitsConfig
from align.learner.learner import Learner
from align.learner.ranks.group import LearnerGroup
from rollouts.errors import LostRankError, RunError
from tests.integration.test_learner_group import (
    BATCHES, IDENTITY, KINDS, PPO, SPEC, alone, begin, tensors,
)
from tests.patience import patient
from tests.unit.tiny import save_model

disk = Path("disk").absolute()
base = save_model(disk / "base")
scratch = disk / "scratch"
scratch.mkdir()

def group(kind="full", ranks=2, **waits):
    return LearnerGroup(
        base,
        PolicyConfig(
            model="tiny", ranks=ranks, ranks_per_node=1, resources={"custom": {"learner": 1}}, **KINDS[kind]
        ),
        folder_of=lambda _: base,
        scratch=scratch,
        tolerance=1e9,
        waits=WaitsConfig(**{"ranks_start_s": patient(120), "ranks_s": patient(60), **waits}),
        note=lambda text: print("note:", text, flush=True),
    )

def same(metrics, expected, tolerance=1e-4):
    assert metrics.keys() == expected.keys()
    for name in expected.keys() - {"time/update_s"}:
        assert metrics[name] == pytest.approx(expected[name], abs=tolerance, rel=tolerance), name

def exactly(metrics):
    return {**metrics, "time/update_s": 0}

def said(*words):
    print(*words, flush=True)

for _ in range(100):
    try:
        ray.init(address="10.77.0.1:6379", log_to_driver=False)
        break
    except ConnectionError:  # The head is starting.
        time.sleep(0.5)
while ray.cluster_resources().get("learner", 0) < 2:
    time.sleep(0.2)
"""

PARITY = """
for kind, spec in (("full", PPO), ("lora", SPEC)):
    two = group(kind)
    homes = {node.address: node.sees_driver for node in two._transfer.nodes}
    assert len(homes) == 2 and not any(homes.values()), homes
    one = alone(base, scratch, kind)
    first, second = begin(one, kind, spec), begin(two, kind, spec)
    for batch in BATCHES[:3]:
        same(second.update(batch), first.update(batch))
    second.checkpoint(disk / kind / "kept", 3, identity=IDENTITY)
    (step,) = (disk / kind / "kept").glob("step-*")
    assert sorted(f.name for f in step.iterdir()) == [
        "checkpoint.json", "rank-0.safetensors", "rank-1.safetensors",
    ]
    straight = [second.update(batch) for batch in BATCHES[3:]]
    for metrics, batch in zip(straight, BATCHES[3:], strict=True):
        same(metrics, first.update(batch))
    two.save(disk / kind / "two"), one.save(disk / kind / "one")
    ours, theirs = tensors(disk / kind / "one"), tensors(disk / kind / "two")
    assert ours.keys() == theirs.keys() and ours
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-4, rtol=1e-4)
    if second.critic is not None:
        second.critic.save(disk / "critic")
        assert tensors(disk / "critic").keys() == first.critic.named_tensors().keys()
    if kind == "lora":
        served = tensors(Path(two.weights("r/1").adapter))
        assert all(torch.equal(served[n], theirs[n]) for n in theirs)
    second = begin(two, kind, spec)
    assert second.restore(disk / kind / "kept", identity=IDENTITY).step == 3
    again = [second.update(batch) for batch in BATCHES[3:]]
    assert list(map(exactly, again)) == list(map(exactly, straight))
    two.close()
    said(kind, "parity")
"""

LOSS = """
two = group(silence_s=2.0)
training = begin(two, "full")
training.update(BATCHES[0])
training.checkpoint(disk / "kept", 1, identity=IDENTITY)
straight = [training.update(batch) for batch in BATCHES[1:]]
training = begin(two, "full")
training.restore(disk / "kept", identity=IDENTITY)
said("cut me")
time.sleep(1.0)
again = [training.update(batch) for batch in BATCHES[1:]]
assert list(map(exactly, again)) == list(map(exactly, straight))
said("mended")
training = begin(two, "full")
training.restore(disk / "kept", identity=IDENTITY)
training.update(BATCHES[1])
said("kill me")
try:
    while True:
        training.update(BATCHES[1])
except LostRankError as lost:
    said("lost:", lost)
try:
    group(ranks_start_s=3.0)
except RunError as waited:
    said("waited:", waited)
said("bring me back")
two = group()
training = begin(two, "full")
assert training.restore(disk / "kept", identity=IDENTITY).step == 1
again = [training.update(batch) for batch in BATCHES[1:]]
assert list(map(exactly, again)) == list(map(exactly, straight))
two.close()
said("same again")
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef" * 4)
    ours = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    ours |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    root = str(Path(__file__).parents[2])
    silent = {
        # A machine without power says nothing: it is missed after three silent checks.
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": f"{patient(5000):.0f}",
        "RAY_health_check_failure_threshold": "3",
        "RAY_agent_register_timeout_ms": f"{patient(120_000):.0f}",
        "RAY_worker_register_timeout_seconds": f"{patient(120):.0f}",
    }
    return ours | RAY_ENVIRONMENT | silent | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}


@pytest.fixture
def net(tmp_path: Path, environ: dict[str, str]) -> Iterator[Machines]:
    (tmp_path / "disk").mkdir()
    with machines(tmp_path, environ) as made:
        yield made


def started(
    net: Machines, folder: Path, environ: dict[str, str], script: str
) -> subprocess.Popen[str]:
    """A script on the head of a cluster with two machines for ranks, which lack the head's disk."""
    head = net.add("head", head_command(cpus=1))
    for name in ("one", "two"):
        net.add(name, worker_command(1, LEARNER), lacks=folder / "disk")
    return subprocess.Popen(
        head.run(folder, sys.executable, "-c", BEGINNING + script),
        env=environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_two_machines_learn_what_one_rank_does(
    tmp_path: Path, net: Machines, environ: dict[str, str]
) -> None:
    run = started(net, tmp_path, environ, PARITY)
    output, _ = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, output
    assert "full parity" in output and "lora parity" in output


def test_a_link_is_cut_for_ten_seconds_and_a_machine_for_good(
    tmp_path: Path, net: Machines, environ: dict[str, str]
) -> None:
    run = started(net, tmp_path, environ, LOSS)
    assert run.stdout is not None
    lines: list[str] = []
    for line in run.stdout:
        lines.append(line)
        one = net.all[1]
        if line == "cut me\n":
            net.cut(one)
            time.sleep(10.0)
            net.cut(one, off=False)
        elif line == "kill me\n":
            one.kill()
        elif line == "bring me back\n":
            net.add("one", worker_command(1, LEARNER), lacks=tmp_path / "disk")
    output = "".join(lines)
    assert run.wait(timeout=PATIENCE_S) == 0, output
    assert "rank 0 died" in output or "rank 1 died" in output, output
    assert "no 2 nodes had room for 1 ranks each within 3 s" in output
    assert "1 learner free at 10.77.0.3" in output
    assert lines[-1] == "same again\n"

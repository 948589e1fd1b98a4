"""`keel serve --follow` with real vLLM on a real store: a promotion under load; nothing stays behind."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copyfile

import httpx
import psutil
import pytest

from align.demo import BASE_MODEL
from align.evidence import Evidence
from align.memory.snapshots import Kind
from tests.unit.campaigns import raw_campaign, rounds
from tests.unit.stores import made

ROOT = Path(__file__).parents[2]
KEEL = (sys.executable, "-c", "from launch.cli import main; main()")
PATIENCE_S = 280.0
"""A busy machine takes long to start vLLM twice."""
ANSWERS = {
    "model": "small",
    "prompt": [3, 4, 5],
    "max_tokens": 4,
    "temperature": 0,
    "ignore_eos": True,
}


def write(folder: Path, name: str | None) -> Kind:
    """The demo model; that of the last round with its last layer's output turned round."""
    from safetensors.torch import load_file, save_file

    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        copyfile(BASE_MODEL / file, folder / file)
    if name == "round2":
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] *= -1.0
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return "model"


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    """Three accepted rounds, and production back at the first."""
    scores = ({"round0": 50}, {"round1": 50}, {"round2": 45})
    found = made(tmp_path, *scores, write=write)
    raw = raw_campaign(tmp_path, rounds=rounds({}, {}, {}), gate={"mode": "enforce"})
    (tmp_path / "campaign.yaml").write_text(json.dumps(raw))
    move(found, "round0")
    return found


def candidate(evidence: Evidence, name: str) -> str:
    return next(r.candidate for r in evidence.committed() if r.name == name and r.candidate)


def move(evidence: Evidence, name: str) -> str:
    """Production to the snapshot of a round that was accepted."""
    production, target = evidence.ledger.alias("production"), candidate(evidence, name)
    assert production is not None
    evidence.ledger.move_production(target, production, "by the test")
    return target


@dataclass
class Served:
    process: subprocess.Popen[str]
    url: str = ""
    said: list[str] = field(default_factory=list)

    def until(self, reached: Callable[[], bool]) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while not reached():
            assert self.process.poll() is None and time.monotonic() < give_up, self.said
            time.sleep(0.05)

    def heard(self, pattern: str) -> bool:
        return any(re.search(pattern, line) for line in self.said)


@contextmanager
def serving(campaign: Path) -> Iterator[Served]:
    process = subprocess.Popen(
        [*KEEL, "serve", str(campaign), "--follow", "--port", "0", "--poll-s", "0.2"],
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    served = Served(process)
    assert process.stderr is not None

    def listen() -> None:
        served.said.extend(iter(process.stderr.readline, ""))  # type: ignore[union-attr]

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        served.until(lambda: served.heard("listening on"))
        served.url = next(line.split()[-1] for line in served.said if "listening" in line)
        yield served
    finally:
        process.kill()
        process.wait()
        listener.join()
        process.stderr.close()


@dataclass
class Load:
    """Clients that ask until told to stop, and who answered them."""

    client: httpx.Client
    answered: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    enough: threading.Event = field(default_factory=threading.Event)

    def send(self) -> None:
        while not self.enough.is_set():
            try:
                answer = self.client.post("/completions", json=ANSWERS)
                answer.raise_for_status()
                self.answered.append(answer.headers["x-keel-snapshot"])
            except httpx.HTTPError as error:
                self.lost.append(repr(error))

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self.send) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.enough.set()
            for thread in threads:
                thread.join()


@pytest.mark.timeout(3 * PATIENCE_S)
def test_a_promotion_under_load_loses_nothing(evidence: Evidence, tmp_path: Path) -> None:
    first, third = candidate(evidence, "round0"), candidate(evidence, "round2")
    with serving(tmp_path / "campaign.yaml") as served:
        key = (evidence.folder / "serving" / "key").read_text().strip()
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(
            base_url=served.url, headers=headers, trust_env=False, timeout=PATIENCE_S
        ) as client:
            served.until(lambda: served.heard(f"serving {first[:16]}"))
            assert httpx.get(f"{served.url}/models", trust_env=False).status_code == 401
            text, who = complete(client)
            assert who == first
            load = Load(client)
            with load.running():
                damage(evidence, candidate(evidence, "round1"))
                move(evidence, "round1")
                served.until(
                    lambda: served.heard("model.safetensors: model.safetensors has changed")
                )
                assert served.heard(f"{first[:16]} stays")
                move(evidence, "round2")
                served.until(lambda: third in load.answered)
            assert load.lost == []
            assert set(load.answered) == {first, third}
            other, who = complete(client)
            assert who == third and other != text, "the other weights answer"
            assert streamed(client).endswith("data: [DONE]")
            gone = client.post("/completions", json={**ANSWERS, "model": f"small@{first[:16]}"})
            assert gone.status_code == 404, "a pinned name never means another snapshot"
        family = psutil.Process(served.process.pid).children(recursive=True)
        assert any("vllm" in " ".join(child.cmdline()).lower() for child in family)
        logs = "".join(log.read_text() for log in (evidence.folder / "serving").glob("*.log"))
        for words in ("".join(served.said), logs, *(" ".join(c.cmdline()) for c in family)):
            assert key not in words
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(PATIENCE_S) == 0
        assert psutil.wait_procs(family, timeout=PATIENCE_S)[1] == []
    assert served.said[-1] == "stopped\n"


def complete(client: httpx.Client) -> tuple[str, str]:
    """What is answered, and by whom."""
    answer = client.post("/completions", json=ANSWERS)
    assert answer.status_code == 200, answer.text
    snapshot = answer.headers["x-keel-snapshot"]
    assert answer.json()["model"] == f"small@{snapshot[:16]}"
    return answer.json()["choices"][0]["text"], snapshot


def streamed(client: httpx.Client) -> str:
    with client.stream("POST", "/completions", json={**ANSWERS, "stream": True}) as answer:
        return answer.read().decode().strip()


def damage(evidence: Evidence, snapshot: str) -> None:
    """One bit of the weights."""
    file = evidence.folder / "snapshots" / snapshot / "model.safetensors"
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)

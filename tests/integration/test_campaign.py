"""The real thing: `keel run` as a process of its own, with Ray and vLLM, killed and taken up again.

Each start of Ray and vLLM takes most of ten seconds, so one campaign is killed, interrupted and
finished, in that order.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
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
from align.config.gate import CalibrationConfig
from align.config.policy import PolicyConfig
from align.data.base_model import load_encoder
from align.gate.evidence import Evidence, stored_evidence
from align.gate.measurement.results import ItemResults
from align.gate.suites.kinds.calibration import brier, choice_item_of
from align.store.snapshots.snapshots import SnapshotStore
from rollouts.types import Prompt
from tests.patience import patient

ROOT = Path(__file__).parents[2]
KEEL = (sys.executable, "-c", "from launch.cli import main; main()")
RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's own helpers, which hold no model; orphaned, they look around once a minute and then end."""
LOOK_S = 0.25
"""Between two looks at all processes; they take what a small machine needs to get on."""
PATIENCE_S = patient(240.0)
"""Seconds that a busy machine may take to reach the next landmark."""


FACTS: list[dict[str, Any]] = [
    {"prompt": "copy _ 1 2 =", "choices": ["1 2", "2 1", "3"], "answer": 0},
    {"prompt": "max _ 3 7 =", "choices": ["3", "7"], "answer": 1},
]
"""Items of a calibration suite."""


def write_campaign(folder: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "name": "real",
        "policy": {"model": "demo://digits"},
        "store": str(folder / "store"),
        "rollouts": {"max_num_seqs": 64, "kv_cache_mb": 64},
        "defaults": {
            "sampling": {"group_size": 4, "prompts_per_step": 8, "max_tokens": 6},
            "replay": {"general_prompts": "demo://general?n=100", "past": 0.1, "general": 0.1},
            "suite": {"items": 60, "temperature": 1.0},
        },
        "rounds": [
            {"name": "first", "prompts": "demo://rev", "rewards": ["exact_match"], "steps": 3},
            {"name": "second", "prompts": "demo://inc", "rewards": ["exact_match"], "steps": 8},
        ],
        "suites": [
            {"name": "general", "prompts": "demo://general", "metric": "exact_match", "items": 60},
            {"name": "facts", "calibration": "facts.jsonl", "items": len(FACTS), "role": "watch"},
        ],
        "gate": {"mode": "observe"},
    } | changes  # fmt: skip
    (folder / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in FACTS))
    path = folder / "campaign.yaml"
    path.write_text(json.dumps(content))
    return path


def reference_values(model: Path) -> list[float]:
    """Compute the Brier score of every fact with transformers, its sign turned."""
    import torch
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    encoder = load_encoder(model, PolicyConfig(model="demo://digits"))
    source = CalibrationConfig(source="facts.jsonl")
    values = []
    for number, row in enumerate(FACTS):
        prompt = Prompt(id=str(number), text=row["prompt"], columns=row)
        item = choice_item_of(prompt, source, encoder)
        sums = []
        for request in item.requests:
            ids = torch.tensor([[*request.prompt_ids, *request.completion_ids]])
            with torch.no_grad():
                logprobs = policy(ids).logits[0, :-1].log_softmax(-1)
            said = torch.tensor(request.completion_ids)
            sums.append(float(logprobs[-len(said) :].gather(1, said[:, None]).sum()))
        probabilities = item.probabilities(sums, "none")
        assert probabilities is not None
        values.append(-brier(probabilities, item.right))
    return values


def heed_interrupts() -> None:
    """A background job of a script starts with SIGINT ignored, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Driver:
    """A `keel run` in a session of its own, as a terminal would start it."""

    def __init__(self, path: Path) -> None:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("RAY_ADDRESS")}
        self.process = subprocess.Popen(
            [*KEEL, "run", str(path)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=ROOT, env=environ, start_new_session=True, preexec_fn=heed_interrupts,
        )  # fmt: skip
        self.seen: dict[int, psutil.Process] = {}
        """Every descendant there has ever been."""
        self.seen_names: set[str] = set()

    def until(self, reached: Callable[[], bool]) -> None:
        """Wait for a landmark, taking note of the processes on the way."""
        deadline, next_look = time.monotonic() + PATIENCE_S, 0.0
        while not reached():
            if time.monotonic() >= next_look:
                self.look()
                next_look = time.monotonic() + LOOK_S
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, "the campaign did not come so far"
            time.sleep(0.02)
        self.look()

    def look(self) -> None:
        for child in psutil.Process(self.process.pid).children(recursive=True):
            self.seen.setdefault(child.pid, child)
            with suppress(psutil.NoSuchProcess):
                self.seen_names.add(" ".join(child.cmdline()).strip())

    def finish(self) -> tuple[int, str, str]:
        out, error = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, error

    def survivors(self, ignore: tuple[str, ...] = ()) -> list[str]:
        """Descendants that are still there after half a minute."""
        deadline = time.monotonic() + patient(30.0)
        while (alive := self.alive(ignore)) and time.monotonic() < deadline:
            time.sleep(0.2)
        return alive

    def alive(self, ignore: tuple[str, ...]) -> list[str]:
        names = []
        for process in self.seen.values():
            with suppress(psutil.NoSuchProcess):
                name = " ".join(process.cmdline()).strip()
                gone = process.status() == psutil.STATUS_ZOMBIE or not process.is_running()
                if not gone and name not in ignore:
                    names.append(name)
        return names

    def clear(self) -> None:
        """End what a failed test has left."""
        self.process.kill()
        self.process.wait()
        for process in self.seen.values():
            if process.is_running():
                process.kill()


@pytest.fixture
def drive() -> Iterator[Callable[[Path], Driver]]:
    drivers: list[Driver] = []

    def start(path: Path) -> Driver:
        drivers.append(Driver(path))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.clear()


def lines(path: Path, round_name: str, attempt: int) -> int:
    """Learner steps that an attempt has written down."""
    file = path.parent / f"store/rounds/{round_name}/attempt-{attempt}/metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def evidence_of(path: Path) -> Evidence:
    return stored_evidence(load_campaign(path).config)


def check_store(path: Path) -> None:
    """The database is whole, nobody claims it, and production is an accepted, undamaged snapshot."""
    with sqlite3.connect(path.parent / "store/ledger.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        assert database.execute("SELECT count(*) FROM claims").fetchone() == (0,)
    evidence = evidence_of(path)
    moves = evidence.ledger.alias_moves()
    accepted = [r.candidate for r in evidence.ledger.rounds() if r.state == "accepted"]
    assert [move.target for move in moves] == [evidence.base, *accepted]
    assert [move.previous for move in moves] == [None, *(m.target for m in moves[:-1])]
    assert evidence.ledger.alias("production") == moves[-1].target
    store = SnapshotStore(path.parent / "store")
    assert store.open(moves[-1].target).manifest.provenance.round == (
        evidence.ledger.rounds()[len(accepted) - 1].name
    )


@pytest.mark.timeout(900)
def test_a_campaign_survives_its_driver(tmp_path: Path, drive: Callable[[Path], Driver]) -> None:
    path = write_campaign(tmp_path)

    killed = drive(path)
    killed.until(lambda: lines(path, "01-second", 1) >= 2)
    killed.process.kill()
    assert killed.process.wait(timeout=patient(10)) == -signal.SIGKILL
    assert any("EngineActor" in name for name in killed.seen_names), killed.seen_names
    assert killed.survivors(ignore=RAY_AGENTS) == []
    first, second = evidence_of(path).ledger.rounds()
    assert (first.state, second.state) == ("accepted", "running")
    assert evidence_of(path).ledger.alias("production") == first.candidate

    interrupted = drive(path)
    interrupted.until(lambda: lines(path, "01-second", 2) >= 2)
    # As Ctrl-C does: to the driver and to everything it has started.
    os.killpg(interrupted.process.pid, signal.SIGINT)
    code, _, error = interrupted.finish()
    assert code == 130
    assert error.endswith(
        "\ninterrupted: finished rounds are kept; the same command goes on from there\n"
    )
    assert error.count("\n") == 2, "that, and which file was read"
    assert interrupted.survivors() == []
    first_again, second = evidence_of(path).ledger.rounds()
    assert first_again == first
    assert (second.state, second.attempt, second.candidate) == ("failed", 2, None)

    code, out, error = drive(path).finish()
    assert (code, error) == (0, f"reading {path}\n")
    assert "Score of every snapshot on every suite" in out
    assert "second (rejected)" not in out
    check_store(path)
    attempts = [(r.name, r.attempt, r.state) for r in evidence_of(path).ledger.attempts()]
    assert [a for a in attempts if a[1] > 0] == [
        ("first", 1, "accepted"), ("second", 1, "failed"), ("second", 2, "failed"),
        ("second", 3, "accepted"),
    ]  # fmt: skip
    assert lines(path, "00-first", 1) == 3
    assert lines(path, "01-second", 3) == 8
    # What the killed attempt did up to its end, the last one did again.
    killed_line, last_line = (
        json.loads((tmp_path / f"store/rounds/01-second/attempt-{n}/metrics.jsonl").open().readline())
        for n in (1, 3)
    )  # fmt: skip
    for key in ("reward/mean", "batch/new_tokens", "batch/past_tokens", "batch/general_tokens"):
        assert killed_line[key] == last_line[key]
    assert all(
        json.loads(line)["parity/max_abs_diff"] < 1e-4
        for file in (tmp_path / "store/rounds").rglob("metrics.jsonl")
        for line in file.read_text().splitlines()
    )


@pytest.mark.timeout(600)
def test_a_campaign_of_adapters(tmp_path: Path, drive: Callable[[Path], Driver]) -> None:
    rounds = [
        {"name": "first", "prompts": "demo://rev", "rewards": ["exact_match"], "steps": 2},
        {"name": "second", "prompts": "demo://inc", "rewards": ["exact_match"], "steps": 2},
    ]
    path = write_campaign(
        tmp_path,
        policy={"model": "demo://digits", "lora": {"rank": 4, "alpha": 8}},
        rounds=rounds,
    )
    driver = drive(path)
    code, out, error = driver.finish()
    assert (code, error) == (0, f"reading {path}\n")
    assert "Score of every snapshot on every suite" in out
    assert "second (rejected)" not in out
    check_store(path)
    evidence, store = evidence_of(path), SnapshotStore(tmp_path / "store")
    for record in evidence.ledger.rounds():
        snapshot = store.open(record.candidate or "")
        assert snapshot.kind == "adapter"
        assert (snapshot.path / "adapter_model.safetensors").stat().st_size < 500_000
    assert store.open(evidence.base).kind == "model"
    matrix = evidence.matrix()
    assert all(score is not None for row in matrix.rows for score in row.scores)
    assert lines(path, "01-second", 1) == 2
    of_base = {e.suite: e.suite_hash for e in evidence.ledger.evaluations(evidence.base)}
    measured = ItemResults.load(evidence.locate(evidence.base, of_base["facts"]))
    expected = reference_values(store.open(evidence.base).path)
    assert measured.values == pytest.approx(expected, abs=1e-3)

"""`keel feedback serve` as a process of its own: asked to end, killed, and not the only writer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from align.schedule.inbox.inbox import Inbox
from align.store.ledger.ledger import Ledger
from tests.patience import patient

ROOT = Path(__file__).parents[2]
KEEL = (sys.executable, "-c", "from launch.cli import main; main()")
PATIENCE_S = patient(120.0)
SENDERS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    process: subprocess.Popen[str]
    url: str
    headers: dict[str, str]

    def send(self, *rows: dict[str, Any]) -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
            return client.post(f"{self.url}/v1/feedback", json=list(rows), headers=self.headers)

    def end(self, number: int) -> tuple[int, str]:
        """Exit code and the last it said."""
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        assert self.process.stderr is not None
        return code, self.process.stderr.read()


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    content = {
        "name": "fed",
        "policy": {"model": "demo://digits"},
        "store": str(tmp_path / "store"),
        "rounds": [
            {
                "name": "first",
                "algorithm": {"name": "dpo", "pairs": "file"},
                "data": "inbox://taste",
                "steps": 1,
            }
        ],
    }
    path = tmp_path / "campaign.yaml"
    path.write_text(json.dumps(content))
    return path


@contextmanager
def serving(campaign: Path) -> Iterator[Server]:
    process = subprocess.Popen(
        [*KEEL, "feedback", "serve", str(campaign), "--port", "0"],
        stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    timer = threading.Timer(PATIENCE_S, process.kill)
    timer.start()
    try:
        assert process.stderr is not None
        said = []
        while line := process.stderr.readline():
            said.append(line)
            if "listening on" in line:
                break
        else:
            raise AssertionError("".join(said))
        token = (campaign.parent / "store" / "inbox" / "token").read_text().strip()
        assert token not in "".join(said)
        url = said[-1].rpartition(" ")[2].strip()
        yield Server(process=process, url=url, headers={"Authorization": f"Bearer {token}"})
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def inbox_of(campaign: Path) -> Inbox:
    return Inbox(Ledger(f"sqlite:///{campaign.parent / 'store' / 'ledger.db'}").database)


def pair(name: str) -> dict[str, str]:
    return {"prompt": f"Question {name}?", "chosen": "yes", "rejected": "no"}


@contextmanager
def senders(server: Server) -> Iterator[list[tuple[int, str]]]:
    """Threads that send pair after pair until the server is gone; number and prompt of what it stored."""
    told: list[tuple[int, str]] = []

    def send(sender: int) -> None:
        with httpx.Client(headers=server.headers, trust_env=False, timeout=PATIENCE_S) as client:
            for index in range(100_000):
                row = pair(f"{sender}.{index}")
                try:
                    answer = client.post(f"{server.url}/v1/feedback", json=row)
                except httpx.TransportError:
                    return
                if answer.status_code == 503:
                    return
                assert answer.status_code == 200, answer.text
                told.append((answer.json()["numbers"][0], row["prompt"]))

    threads = [threading.Thread(target=send, args=(sender,)) for sender in range(SENDERS)]
    for thread in threads:
        thread.start()
    yield told
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads)


def until(reached: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_nothing_acknowledged_is_lost_on_sigkill(campaign: Path) -> None:
    stored: dict[int, str] = {}
    for kills in range(2):
        with serving(campaign) as server, senders(server) as told:
            until(lambda told=told: len(told) >= 60)  # type: ignore[misc]
            os.kill(server.process.pid, signal.SIGKILL)
        stored = {
            row.number: str(row.payload["prompt"]) for row in inbox_of(campaign).rows("taste")
        }
        assert {number: stored.get(number) for number, _ in told} == dict(told), kills
        assert len(set(stored.values())) == len(stored)
    with serving(campaign) as server:
        again = server.send(
            *({"prompt": p, "chosen": "yes", "rejected": "no"} for p in stored.values())
        )
        assert again.json()["duplicates"] == len(stored)
        assert server.end(signal.SIGINT)[0] == 0


def test_asked_to_end_it_answers_what_it_has(campaign: Path) -> None:
    with serving(campaign) as server:
        with senders(server) as told:
            until(lambda: len(told) >= 30)
            code, said = server.end(signal.SIGTERM)
        assert (code, said) == (0, "stopped; everything that was received is stored\n")
    stored = {row.number for row in inbox_of(campaign).rows("taste")}
    assert stored == {number for number, _ in told}


def test_several_processes_write_at_once(campaign: Path) -> None:
    """The server, dropped files and `keel feedback add` share one stream; every row has its own number."""
    files = []
    for name in ("added0", "added1"):
        file = campaign.parent / f"{name}.jsonl"
        file.write_text("".join(json.dumps(pair(f"{name}.{i}")) + "\n" for i in range(300)))
        files.append(file)
    with serving(campaign) as server, senders(server) as told:
        drop = campaign.parent / "store" / "inbox" / "drop" / "taste"
        staged = drop / "rows.jsonl.part"
        staged.write_text("".join(json.dumps(pair(f"dropped.{i}")) + "\n" for i in range(300)))
        staged.rename(drop / "rows.jsonl")
        adding = [
            subprocess.Popen([*KEEL, "feedback", "add", str(campaign), str(file)], cwd=ROOT)
            for file in files
        ]
        assert [process.wait(PATIENCE_S) for process in adding] == [0, 0]
        until(lambda: not (drop / "rows.jsonl").exists() and len(told) >= 20)
        assert server.end(signal.SIGTERM)[0] == 0
    rows = inbox_of(campaign).rows("taste")
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) == 900 + len(told)
    assert inbox_of(campaign).waiting("taste").count == len(rows)

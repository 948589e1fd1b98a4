"""A night from end to end, with the real commands: feedback arrives over HTTP, a DPO round falls due, is
gated, production moves, and `keel serve --follow` answers with it; no request is lost on the way."""

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
from typing import Any

import httpx
import psutil
import pytest

from align.config.file import load_campaign
from align.gate.evidence import Evidence, stored_evidence
from align.schedule.inbox import Inbox
from tests.patience import patient
from tests.unit.decided import keel

ROOT = Path(__file__).parents[2]
KEEL = (sys.executable, "-c", "from launch.cli import main; main()")
ROWS = json.loads((ROOT / "configs" / "nightly" / "monday.json").read_text())["rows"]
PATIENCE_S = patient(280.0)
"""A busy machine takes long to start vLLM."""
CLIENTS, CALM_S, DENSE_S = 4, 1.0, 0.25
"""Clients, and seconds between two requests of each: calm while the round needs the cores, dense from the
start of the swap on."""
SNAPSHOT = "x-keel-snapshot"


@dataclass
class Command:
    """A `keel` command that stays, and what it says."""

    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)

    def heard(self, pattern: str) -> bool:
        return any(re.search(pattern, line) for line in list(self.said))

    def until(self, reached: Callable[[], bool]) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while not reached():
            assert self.process.poll() is None, "".join(self.said)
            assert time.monotonic() < give_up, "".join(self.said)
            time.sleep(0.05)

    def url(self) -> str:
        self.until(lambda: self.heard("listening on"))
        return next(line.split()[-1] for line in self.said if "listening on" in line)

    def end(self) -> list[str]:
        """Ask it to end; the names of the processes that it had, none of which is left."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        names = [one.name() for one in below]
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE_S) == 0, "".join(self.said)
        assert psutil.wait_procs(below, timeout=PATIENCE_S)[1] == []
        return names


@contextmanager
def staying(*words: str) -> Iterator[Command]:
    """A command until the block's end; killed there if it was not asked to end before."""
    process = subprocess.Popen(
        [*KEEL, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    command = Command(process)

    def listen() -> None:
        command.said.extend(iter(process.stdout.readline, ""))  # type: ignore[union-attr]

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        yield command
    finally:
        process.kill()
        process.wait()
        listener.join()
        process.stdout.close()  # type: ignore[union-attr]


@dataclass
class Load:
    """Clients that ask until told to stop, and who answered them."""

    client: httpx.Client
    swapping: Callable[[], bool]
    answered: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    enough: threading.Event = field(default_factory=threading.Event)

    def send(self) -> None:
        while not self.enough.wait(DENSE_S if self.swapping() else CALM_S):
            try:
                self.answered.append(ask(self.client, ROWS[0]["prompt"])[1])
            except (httpx.HTTPError, AssertionError) as error:
                self.lost.append(repr(error))

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self.send) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.enough.set()
            for thread in threads:
                thread.join()


def ask(client: httpx.Client, prompts: Any, **more: Any) -> tuple[list[str], str]:
    """Most likely completions, and whose they are."""
    body = {"model": "nightly", "prompt": prompts, "max_tokens": 6, "temperature": 0, **more}
    answer = client.post("/completions", json=body)
    assert answer.status_code == 200, answer.text
    snapshot = answer.headers[SNAPSHOT]
    assert answer.json()["model"] == f"nightly@{snapshot[:16]}"
    return [choice["text"].strip() for choice in answer.json()["choices"]], snapshot


def num_preferred(client: httpx.Client) -> int:
    """Count Monday's prompts that are answered as people preferred."""
    texts, _ = ask(client, [row["prompt"] for row in ROWS])
    return sum(text == row["chosen"] for text, row in zip(texts, ROWS, strict=True))


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    """`configs/nightly.yaml` with a store of its own."""
    text = (ROOT / "configs" / "nightly.yaml").read_text()
    path = tmp_path / "nightly.yaml"
    path.write_text(text.replace("store: ../runs/nightly", f"store: {tmp_path / 'store'}"))
    return path


def evidence_of(campaign: Path) -> Evidence:
    return stored_evidence(load_campaign(campaign).config)


@pytest.mark.timeout(900)
def test_feedback_becomes_what_is_served(campaign: Path) -> None:
    serve = ("serve", str(campaign), "--alias", "production", "--follow", "--poll-s", "0.2")
    with staying("feedback", "serve", str(campaign), "--port", "0") as inbox:
        code, begun, error = keel("run", str(campaign))
        assert code == 0, error
        assert "nightly is scheduled and not due" in begun
        with staying(*serve, "--port", "0") as served, client_of(campaign, served) as client:
            a_night(campaign, inbox, served, client)
            as_documented(campaign, client)
            nothing_of_the_key(campaign, served)
            assert any("vllm" in name.lower() for name in served.end())
            assert served.said[-1] == "stopped\n"
        inbox.end()


def a_night(campaign: Path, inbox: Command, served: Command, client: httpx.Client) -> None:
    """Clients ask all the while; the loop ends in the middle of the round, and another one goes on."""
    base, loop_of = evidence_of(campaign).base, ("schedule", "run", str(campaign), "--poll", "0.5")
    with staying(*loop_of) as loop:
        post(campaign, inbox, ROWS[:250])
        served.until(lambda: served.heard(f"serving {base[:16]}"))
        before = num_preferred(client)
        load = Load(client, swapping=lambda: served.heard("is wanted; starting it"))
        with load.running():
            loop.until(lambda: loop.heard("nothing is due. nightly: 250 of 300 new rows"))
            post(campaign, inbox, ROWS[250:])
            loop.until(lambda: loop.heard("nightly-1: 400 of 300 new rows in inbox://pairs"))
            loop.until(lambda: loop.heard("starting Ray"))
            assert loop.end(), "the round had processes"
            assert loop.heard("stopped; what was under way is taken up again")
            with staying(*loop_of) as another:
                another.until(lambda: another.heard("nothing is due. nightly: 0 of 300 new rows"))
                post(campaign, inbox, ROWS)  # Known already, and so no news.
                new = accepted(campaign)
                served.until(lambda: new in load.answered)
                assert load.swapping()
                assert another.end() == [], "nothing fell due"
    assert load.lost == []
    assert set(load.answered) == {base, new}
    assert num_preferred(client) > before


def as_documented(campaign: Path, client: httpx.Client) -> None:
    """Streams end, and the name of a snapshot that is no longer served leads to no other one."""
    asked = {"model": "nightly", "prompt": "rev _ 1 2 3 4 5 =", "max_tokens": 6, "stream": True}
    with client.stream("POST", "/completions", json=asked) as answer:
        assert answer.read().decode().strip().endswith("data: [DONE]")
    base = evidence_of(campaign).base
    pinned = {"model": f"nightly@{base[:16]}", "prompt": "rev _ 1 2 3 4 5 ="}
    assert client.post("/completions", json=pinned).status_code == 404


def accepted(campaign: Path) -> str:
    """Return production after the one round, which has used every row."""
    evidence = evidence_of(campaign)
    (record,) = evidence.ledger.rounds()
    assert (record.name, record.state) == ("nightly-1", "accepted")
    (reservation,) = Inbox(evidence.ledger.database).reservations()
    assert (reservation.round, reservation.state, reservation.num_rows) == (
        "nightly-1",
        "used",
        len(ROWS),
    )
    production = evidence.ledger.alias("production")
    assert production is not None
    assert production == record.candidate != evidence.base
    return production


def post(campaign: Path, inbox: Command, rows: list[dict[str, str]]) -> None:
    url = inbox.url()
    token = (campaign.parent / "store" / "inbox" / "token").read_text().strip()
    answer = httpx.post(
        f"{url}/v1/feedback",
        json={"rows": rows},
        headers={"Authorization": f"Bearer {token}"},
        trust_env=False,
        timeout=PATIENCE_S,
    )
    assert answer.status_code == 200, answer.text


@contextmanager
def client_of(campaign: Path, served: Command) -> Iterator[httpx.Client]:
    url = served.url()
    assert httpx.get(f"{url}/models", trust_env=False).status_code == 401
    key = (campaign.parent / "store" / "serving" / "key").read_text().strip()
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=PATIENCE_S) as client:
        yield client


def nothing_of_the_key(campaign: Path, served: Command) -> None:
    """Neither what is said nor a log nor a command line shows it."""
    folder = campaign.parent / "store" / "serving"
    key = (folder / "key").read_text().strip()
    family = psutil.Process(served.process.pid).children(recursive=True)
    logs = [log.read_text() for log in folder.glob("*.log")]
    assert logs
    for words in ("".join(served.said), *logs, *map(command_line, family)):
        assert key not in words


def command_line(process: psutil.Process) -> str:
    """Return the command line of a process; nothing of one that has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""

"""A night: pairs arrive over HTTP, a DPO round falls due, runs on vLLM, and production moves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from align.campaign_file import load_campaign
from align.evidence import Evidence, stored_evidence
from align.inbox import Inbox

ROOT = Path(__file__).parents[2]
KEEL = (sys.executable, "-c", "from launch.cli import main; main()")
PATIENCE_S = 240.0
NOTHING_DUE = 4


def keel(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*KEEL, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )


@contextmanager
def serving(campaign: Path) -> Iterator[str]:
    """``keel feedback serve``; its address."""
    process = subprocess.Popen(
        [*KEEL, "feedback", "serve", str(campaign), "--port", "0"],
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    timer = threading.Timer(PATIENCE_S, process.kill)
    timer.start()
    try:
        assert process.stderr is not None
        line = ""
        while "listening on" not in line:
            line = process.stderr.readline()
            assert line, "the server did not start"
        yield line.rpartition(" ")[2].strip()
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    finally:
        timer.cancel()
        process.kill()
        process.communicate()


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    """`configs/nightly.yaml` with a store of its own."""
    text = (ROOT / "configs" / "nightly.yaml").read_text()
    path = tmp_path / "nightly.yaml"
    path.write_text(f"{text}\nstore: {tmp_path / 'store'}\n")
    return path


def evidence_of(campaign: Path) -> Evidence:
    return stored_evidence(load_campaign(campaign).config)


@pytest.mark.timeout(600)
def test_feedback_becomes_production(campaign: Path) -> None:
    rows = json.loads((ROOT / "configs" / "nightly" / "monday.json").read_text())["rows"]
    with (
        serving(campaign) as url,
        httpx.Client(trust_env=False, timeout=60.0) as client,
    ):
        token = (campaign.parent / "store" / "inbox" / "token").read_text().strip()

        def post(part: list[dict[str, str]]) -> None:
            headers = {"Authorization": f"Bearer {token}"}
            answer = client.post(f"{url}/v1/feedback", json={"rows": part}, headers=headers)
            assert answer.status_code == 200, answer.text

        post(rows[:250])
        early = keel("schedule", "tick", str(campaign))
        assert early.returncode == NOTHING_DUE, early.stderr
        assert "not yet  nightly: 250 of 300 new rows in inbox://pairs" in early.stdout
        post(rows[250:])
        ran = keel("schedule", "tick", str(campaign))
        assert ran.returncode == 0, ran.stderr
        assert "due      nightly-1: 400 of 300 new rows in inbox://pairs" in ran.stdout

        evidence = evidence_of(campaign)
        (record,) = evidence.ledger.rounds()
        assert (record.name, record.state) == ("nightly-1", "accepted")
        assert evidence.ledger.alias("production") == record.candidate != evidence.base
        (take,) = Inbox(evidence.ledger.database).takes()
        assert (take.round, take.state, take.num_rows) == ("nightly-1", "used", len(rows))
        again = keel("schedule", "tick", str(campaign))
        assert (again.returncode, again.stderr) == (NOTHING_DUE, "")
        # Rows that are known already are no news.
        post(rows)
        assert keel("schedule", "tick", str(campaign)).returncode == NOTHING_DUE
    told = json.loads(keel("schedule", "next", str(campaign), "--json").stdout)
    assert told["due"] == []
    assert told["waits"][0]["why"] == "0 of 300 new rows in inbox://pairs"
    assert "nightly-1: accepted" in keel("status", str(campaign)).stdout


@pytest.mark.timeout(600)
def test_the_loop_ends_with_all_it_started_and_the_round_goes_on(campaign: Path) -> None:
    """SIGTERM in the middle of a round; the next tick takes up that round and no other."""
    rows = json.loads((ROOT / "configs" / "nightly" / "monday.json").read_text())["rows"]
    pairs = campaign.parent / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert keel("feedback", "add", str(campaign), str(pairs)).returncode == 0
    loop = subprocess.Popen(
        [*KEEL, "schedule", "run", str(campaign), "--poll", "1"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    import psutil

    give_up = time.monotonic() + PATIENCE_S
    try:
        while not (campaign.parent / "store" / "evaluations").exists():
            assert loop.poll() is None, loop.communicate()
            assert time.monotonic() < give_up
            time.sleep(0.1)
        below = psutil.Process(loop.pid).children(recursive=True)
        assert below
        loop.send_signal(signal.SIGTERM)
        _, said = loop.communicate(timeout=PATIENCE_S)
        assert loop.returncode == 0
    finally:
        loop.kill()
        loop.wait()
    assert "nightly-1: 400 of 300 new rows" in said
    assert "stopped; what was under way is taken up again" in said
    _, alive = psutil.wait_procs(below, timeout=30.0)
    assert not alive
    due = json.loads(keel("schedule", "next", str(campaign), "--json").stdout)["due"]
    assert [(one["round"], one["claimed"]) for one in due] == [("nightly-1", True)]

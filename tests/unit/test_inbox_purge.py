"""A purge removes all that a person sent, wherever it went, and leaves a record without it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from align.errors import StoreBusy
from align.inbox.drop import make_drop, sweep
from align.inbox.inbox import Inbox
from align.inbox.purge import purge, purges
from align.memory.ledger import Ledger
from align.memory.replay import ReplayBuffer
from rollouts.prompts import content_id
from rollouts.types import Prompt
from tests.unit.inboxes import TASTE, feedback, opened, pair
from tests.unit.ledgers import BASE, FIRST, REPORT

FORMS = {"taste": TASTE}


def prompt(number: int) -> Prompt:
    text = f"Question {number}?"
    return Prompt(id=content_id(text), text=text)


def used(folder: Path) -> tuple[Ledger, Inbox]:
    """A campaign whose first round has learnt from rows 1 to 3, of which the first two are a person's."""
    ledger, inbox = opened(folder)
    rows = [feedback(1, user="ann"), feedback(2, user="ann"), feedback(3, user="bob")]
    inbox.add("taste", rows)
    inbox.take("reverse", "taste")
    attempt = ledger.begin_round(0, "reverse", BASE.id)
    ledger.enter_gating(0, attempt, FIRST.id)
    buffer = ReplayBuffer()
    buffer.add("reverse", [prompt(1), prompt(2), prompt(3)], owner=FIRST.id, cap=9, seed=0)
    buffer.save(folder / "replay" / "first.jsonl")
    ledger.commit_round(0, attempt, "accepted", FIRST.id, REPORT)
    return ledger, inbox


def test_rows_and_replayed_prompts_go(tmp_path: Path) -> None:
    ledger, inbox = used(tmp_path)
    inbox.add("taste", [TASTE.judge({"x": "y", "user": "ann"}, "test"), feedback(4, user="ann")])
    done = purge(ledger, tmp_path, FORMS, "ann")
    assert (done.num_rows, done.num_replayed, done.rounds) == (4, 2, ("reverse",))
    assert [row.user for row in inbox.rows("taste")] == ["bob"]
    entries = ReplayBuffer.load(tmp_path / "replay" / "first.jsonl").entries
    assert [p.id for p in entries["reverse"]] == [prompt(3).id]
    assert inbox.add("taste", [feedback(5)]).numbers == (6,)
    assert inbox.waiting("taste").count == 1


def test_the_record_names_nobody(tmp_path: Path) -> None:
    ledger, _ = used(tmp_path)
    done = purge(ledger, tmp_path, FORMS, "ann")
    assert purges(ledger) == [done]
    assert done.user_sha256 == hashlib.sha256(b"ann").hexdigest()
    database = b"".join(file.read_bytes() for file in tmp_path.glob("ledger.sqlite*"))
    assert b"Question 3?" in database
    assert b"Question 1?" not in database
    assert b'"ann"' not in database
    again = purge(ledger, tmp_path, FORMS, "ann")
    assert (again.num_rows, again.rounds) == (0, ())
    assert len(purges(ledger)) == 2


def test_an_unfinished_round_takes_again(tmp_path: Path) -> None:
    ledger, inbox = opened(tmp_path)
    inbox.add("taste", [feedback(1, user="ann"), feedback(2)])
    inbox.take("reverse", "taste")
    attempt = ledger.begin_round(0, "reverse", BASE.id)
    ledger.commit_round(0, attempt, "failed", None, {})
    assert purge(ledger, tmp_path, FORMS, "ann").restarted == ("reverse",)
    inbox.add("taste", [feedback(3)])
    take = inbox.take("reverse", "taste")
    assert take is not None
    assert [row.values["prompt"] for row in inbox.read(take)] == ["Question 2?", "Question 3?"]


def test_processed_files_of_the_person_go_too(tmp_path: Path) -> None:
    ledger, inbox = opened(tmp_path)
    place = make_drop(tmp_path / "inbox", FORMS) / "taste"
    (place / "a.jsonl").write_text(json.dumps(pair(1, user="ann")))
    (place / "b.jsonl").write_text(json.dumps(pair(2, user="bob")))
    sweep(tmp_path / "inbox", inbox, FORMS)
    done = purge(ledger, tmp_path, FORMS, "ann")
    assert done.sources == ("a.jsonl",)
    assert len(done.files) == 2
    left = sorted(file.name[-7:] for file in (tmp_path / "inbox/done/taste").iterdir())
    assert left == ["b.jsonl", "rt.json"]


def test_nobody_runs_the_campaign_meanwhile(tmp_path: Path) -> None:
    ledger, inbox = used(tmp_path)
    with ledger.claim("keel run"), pytest.raises(StoreBusy, match=f"process {os.getpid()}"):
        purge(ledger, tmp_path, FORMS, "ann")
    assert len(inbox.rows("taste")) == 3

"""A purge removes all that a person sent, wherever it went, and leaves a record without it."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file

from align.data.replay.buffer import ReplayBuffer
from align.data.replay.history import PromptHistory, Sight
from align.data.stored_answers import load_answers, save_answers
from align.errors import StoreBusy
from align.retention.anchors.copr import RankedAnswers, tensors_of
from align.round.rollout_table import load_records, save_records
from align.schedule.inbox import purge as purging
from align.schedule.inbox.drop import alone, make_drop, sweep
from align.schedule.inbox.inbox import Inbox
from align.schedule.inbox.purge import purge, purges
from align.schedule.inbox.writer import Writer
from align.store.ledger.ledger import Ledger
from align.store.paths import StorePaths
from align.store.store import Store
from rollouts.prompts import content_id
from rollouts.types import Completion, Prompt, RolloutGroup
from tests.unit.inboxes import TASTE, feedback, opened, pair, settled
from tests.unit.ledgers import BASE, FIRST, REPORT

FORMS = {"taste": TASTE}


def put(file: Path, *rows: object) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return settled(file)


def holding(folder: Path, text: bytes) -> list[Path]:
    return [f for f in sorted(folder.rglob("*")) if f.is_file() and text in f.read_bytes()]


def prompt(number: int) -> Prompt:
    text = f"Question {number}?"
    return Prompt(id=content_id(text), text=text)


def used(folder: Path) -> tuple[Ledger, Inbox]:
    """A campaign whose first round has learnt from rows 1 to 3, of which the first two are a person's."""
    ledger, inbox = opened(folder)
    rows = [feedback(1, user="ann"), feedback(2, user="ann"), feedback(3, user="bob")]
    inbox.add("taste", rows)
    inbox.reserve("reverse", "taste")
    attempt = ledger.begin_round(0, "reverse", BASE.id)
    ledger.enter_gating(0, attempt, FIRST.id)
    buffer = ReplayBuffer()
    buffer.add("reverse", [prompt(1), prompt(2), prompt(3)], owner=FIRST.id, cap=9, seed=0)
    buffer.save(folder / "replay" / "first.jsonl")
    known = {prompt(number).id: Sight(number, 0.5) for number in (1, 2, 3)}
    PromptHistory(known=known).save(folder / "replay" / "history-first.jsonl")
    ledger.commit_round(0, attempt, "accepted", FIRST.id, REPORT)
    return ledger, inbox


def test_rows_and_replayed_prompts_go(tmp_path: Path) -> None:
    ledger, inbox = used(tmp_path)
    inbox.add("taste", [TASTE.judge({"x": "y", "user": "ann"}, "test"), feedback(4, user="ann")])
    done = purge(Store(tmp_path, ledger), FORMS, "ann")
    assert (done.num_rows, done.num_replayed, done.rounds) == (4, 2, ("reverse",))
    assert [row.user for row in inbox.rows("taste")] == ["bob"]
    entries = ReplayBuffer.load(tmp_path / "replay" / "first.jsonl").entries
    assert [p.id for p in entries["reverse"]] == [prompt(3).id]
    history = PromptHistory.load(tmp_path / "replay" / "history-first.jsonl")
    assert history.known == {prompt(3).id: Sight(3, 0.5)}
    assert inbox.add("taste", [feedback(5)]).numbers == (6,)
    assert inbox.waiting("taste").count == 1


def test_answers_of_a_later_parent_go_and_ranked_ones_are_named(tmp_path: Path) -> None:
    """On-policy replay stores answers to the person's prompts; COPR keeps pairs, as bare tokens."""
    ledger, _ = used(tmp_path)
    paths = StorePaths(tmp_path)
    answer = Completion(token_ids=(7,), logprobs_T=(-0.1,), text="", finish_reason="stop")
    groups = [
        RolloutGroup(
            prompt=replace(prompt(n), source="past", round="reverse"),
            prompt_ids=(n,), completions_G=(answer,), policy=FIRST.id, seed=0,
        )
        for n in (1, 2, 3)
    ]  # fmt: skip
    save_answers(paths.general_answers("0" * 16), groups)
    for name in ("reverse", "other"):
        sets = [RankedAnswers(round=name, temperature=1.0, prompt=(1,), answers=((2,), (3,)),
                              targets=(-0.1, -3.0))]  # fmt: skip
        path = paths.attempt(0, name, 1).artifact("copr")
        path.parent.mkdir(parents=True)
        save_file(tensors_of(sets), path)
    done = purge(Store(tmp_path, ledger), FORMS, "ann")
    left = load_answers(paths.general_answers("0" * 16))
    assert [group.prompt.id for group in left] == [prompt(3).id]
    assert done.num_replayed == 4
    (named,) = [line for line in done.remains if "copr" in line]
    assert named.startswith("rounds/00-reverse/attempt-1/") and "reverse" in named


def test_the_record_names_nobody(tmp_path: Path) -> None:
    ledger, _ = used(tmp_path)
    done = purge(Store(tmp_path, ledger), FORMS, "ann")
    assert purges(ledger) == [done]
    assert done.user_sha256 == hashlib.sha256(b"ann").hexdigest()
    database = b"".join(file.read_bytes() for file in tmp_path.glob("ledger.sqlite*"))
    assert b"Question 3?" in database
    assert b"Question 1?" not in database
    assert b'"ann"' not in database
    again = purge(Store(tmp_path, ledger), FORMS, "ann")
    assert (again.num_rows, again.rounds) == (0, ())
    assert len(purges(ledger)) == 2


def test_an_unfinished_round_takes_again(tmp_path: Path) -> None:
    ledger, inbox = opened(tmp_path)
    inbox.add("taste", [feedback(1, user="ann"), feedback(2)])
    inbox.reserve("reverse", "taste")
    attempt = ledger.begin_round(0, "reverse", BASE.id)
    ledger.commit_round(0, attempt, "failed", None, {})
    assert purge(Store(tmp_path, ledger), FORMS, "ann").restarted == ("reverse",)
    inbox.add("taste", [feedback(3)])
    reservation = inbox.reserve("reverse", "taste")
    assert reservation is not None
    assert [row.values["prompt"] for row in inbox.read(reservation)] == [
        "Question 2?",
        "Question 3?",
    ]


def test_processed_files_of_the_person_go_too(tmp_path: Path) -> None:
    ledger, inbox = opened(tmp_path)
    place = make_drop(tmp_path / "inbox", FORMS) / "taste"
    put(place / "a.jsonl", pair(1, user="ann"))
    put(place / "b.jsonl", pair(2, user="bob"))
    sweep(tmp_path / "inbox", inbox, FORMS)
    done = purge(Store(tmp_path, ledger), FORMS, "ann")
    assert done.sources == ("a.jsonl",)
    assert len(done.files) == 2
    left = sorted(file.name[-7:] for file in (tmp_path / "inbox/done/taste").iterdir())
    assert left == ["b.jsonl", "rt.json"]


def test_nobody_runs_the_campaign_meanwhile(tmp_path: Path) -> None:
    ledger, inbox = used(tmp_path)
    with ledger.lease("keel run"), pytest.raises(StoreBusy, match=f"process {os.getpid()}"):
        purge(Store(tmp_path, ledger), FORMS, "ann")
    assert len(inbox.rows("taste")) == 3


def test_every_file_that_went_through_the_inbox(tmp_path: Path) -> None:
    """Duplicates, key conflicts, what could not be read, and what nobody has swept yet."""
    ledger, inbox = opened(tmp_path)
    place = make_drop(tmp_path / "inbox", FORMS) / "taste"
    secret = "What only Ann would ask"
    hers = {"chosen": "yes", "rejected": "no", "user": "ann"}
    put(place / "a.jsonl", {"prompt": secret, **hers, "key": "K"})
    put(place / "again.jsonl", {"prompt": secret, **hers}, pair(1, user="bob"))
    put(place / "conflict.jsonl", {"prompt": secret + "?", **hers, "key": "K"})
    put(place / "broken.jsonl", {"prompt": secret + "!", **hers}, pair(2, user="bob"))
    with (place / "broken.jsonl").open("a") as file:
        file.write('{"prom')
    settled(place / "broken.jsonl")
    (place / "rows.csv").write_text(f'prompt,chosen,rejected,user\n{secret},a,b, ann\n"')
    settled(place / "rows.csv")
    put(place / "others.jsonl", pair(3, user="anna"), pair(4, user="bob", prompt="ann"))
    (place / "others.csv").write_text('prompt,user\n"ann and bob",anna\n"')
    settled(place / "others.csv")
    sweep(tmp_path / "inbox", inbox, FORMS)
    put(place / "later.jsonl", {"prompt": secret + "...", **hers})
    done = purge(Store(tmp_path, ledger), FORMS, "ann")
    assert holding(tmp_path, secret.encode()) == []
    assert done.num_rows == 2
    left = {f.name.partition("-")[2] for f in (tmp_path / "inbox").rglob("*.*") if f.is_file()}
    assert {name for name in left if name and "report" not in name} == {"others.csv"}
    assert done.remains == ()
    assert sweep(tmp_path / "inbox", inbox, FORMS) == []
    assert sorted(str(row.user) for row in inbox.rows("taste")) == ["anna", "bob", "bob"]


def test_what_is_left_is_named(tmp_path: Path) -> None:
    ledger, _ = opened(tmp_path)
    place = make_drop(tmp_path / "inbox", FORMS) / "taste"
    put(place / "rows.jsonl.part", pair(1, user="ann"))
    put(place / "theirs.jsonl.part", pair(1, user="bob"))
    (place / "damaged.parquet").write_bytes(b"PAR1" + b"x" * 50 + b"PAR1")
    settled(place / "damaged.parquet")
    damaged, waiting = purge(Store(tmp_path, ledger), FORMS, "ann").remains
    assert "damaged.parquet, which is damaged" in damaged
    assert (
        waiting == "drop/taste/rows.jsonl.part, which no sweep has taken: purge again when one has"
    )
    (record,) = purges(ledger)
    assert record.remains == (damaged, waiting)


def test_answers_to_their_prompts_go_from_the_tables_of_steps(tmp_path: Path) -> None:
    ledger, _ = used(tmp_path)
    tables = [
        tmp_path / "rounds" / "01-sort" / "attempt-1" / place / f"step-{step:04d}.parquet"
        for step, place in ((0, "rollouts"), (1, "rollouts"), (0, "distil/rollouts"))
    ]
    for path, numbers in zip(tables, ((1, 3, 3), (1, 2), (3,)), strict=True):
        asked = [prompt(number) for number in numbers]
        save_records(path, [{"prompt_id": p.id, "prompt": p.text, "tokens": 1} for p in asked])
    done = purge(Store(tmp_path, ledger), FORMS, "ann")
    assert done.num_rollouts == 3
    assert [r["prompt"] for r in load_records(tables[0])] == ["Question 3?"] * 2
    assert not tables[1].exists()
    assert len(load_records(tables[2])) == 1


def test_the_log_of_a_ledger_that_a_server_holds_open(tmp_path: Path) -> None:
    ledger, inbox = opened(tmp_path)
    with Writer(inbox):
        inbox.add("taste", [feedback(1, user="ann"), feedback(2, user="bob")])
        assert holding(tmp_path, b"Question 1?")
        purge(Store(tmp_path, ledger), FORMS, "ann")
        assert holding(tmp_path, b"Question 1?") == []
        assert holding(tmp_path, b"Question 2?")


def test_a_sweep_under_way_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, inbox = used(tmp_path)
    monkeypatch.setattr(purging, "WAIT_S", 0.0)
    with alone(tmp_path / "inbox"), pytest.raises(StoreBusy, match="has read the drop folder"):
        purge(Store(tmp_path, ledger), FORMS, "ann")
    assert len(inbox.rows("taste")) == 3


def test_a_record_of_an_older_version(tmp_path: Path) -> None:
    ledger, _ = opened(tmp_path)
    purge(Store(tmp_path, ledger), FORMS, "ann")
    with ledger.database.write() as connection:
        for field in ("num_rollouts", "remains"):
            connection.exec_driver_sql(
                f"UPDATE inbox_purges SET report = json_remove(report, '$.{field}')"
            )
    (record,) = purges(ledger)
    assert (record.num_rollouts, record.remains) == (0, ())

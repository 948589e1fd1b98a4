"""Rounds that read a stream: real model, learner, store and gate, fed by the inbox."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.campaign import run_campaign
from align.data.demo.world import demo_prompts
from align.round.inputs import load_inputs
from align.schedule.inbox.inbox import Inbox
from align.schedule.inbox.purge import purge
from align.schedule.inbox.rows import stream_forms
from align.store.ledger.ledger import Ledger
from align.store.store import Store
from rollouts.errors import UserError
from tests.unit.align.round.test_round import Ran
from tests.unit.campaigns import Starter, Watcher, campaign, rounds
from tests.unit.inboxes import settled

ROUNDING = 1e-8
"""Size of a divergence of equal distributions whose two passes add their terms in another order."""

DATA = {"source": "inbox://taste", "heldout": 0.3}
FED: dict[str, Any] = {
    "algorithm": {"name": "dpo", "pairs": "file"},
    "prompts": None,
    "rewards": [],
    "data": DATA,
    "steps": 2,
}


def pairs(source: str) -> list[dict[str, Any]]:
    made = []
    for prompt in demo_prompts(source):
        right = str(prompt.columns["answer"])
        wrong = " ".join(reversed(right.split()))
        if right != wrong:
            made.append({"prompt": prompt.text, "chosen": right, "rejected": wrong})
    return made


def drop(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> None:
    place = folder / "store" / "inbox" / "drop"
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    settled(place / name)


def run(folder: Path, *specs: dict[str, Any], watcher: Watcher | None = None) -> Ran:
    starter, watcher = Starter(), watcher or Watcher()
    config = campaign(folder, rounds=rounds(*specs))
    evidence = run_campaign(config, start_engine=starter, observer=watcher)
    return Ran(config=config, evidence=evidence, starter=starter, watcher=watcher)


def inbox_of(folder: Path) -> Inbox:
    return Inbox(Ledger(f"sqlite:///{folder / 'store' / 'ledger.db'}").database)


def test_two_rounds_each_learn_from_what_came_since(tmp_path: Path) -> None:
    drop(tmp_path, pairs("demo://rev?n=80"))
    ran = run(tmp_path, FED)
    (record,) = ran.evidence.ledger.rounds()
    assert record.state == "accepted"
    inbox = inbox_of(tmp_path)
    first = inbox.reservations()[0]
    assert (first.state, inbox.waiting("taste").count) == ("used", 0)

    drop(tmp_path, pairs("demo://inc?n=80"), "more.jsonl")
    later = {**FED, "replay": {"past": 0.3, "general": 0.0}}
    ran = run(tmp_path, FED, later)
    first, second = inbox.reservations()
    assert (second.above, second.state) == (first.newest, "used")
    assert inbox.waiting("taste").count == 0
    # What the first round taught is held and measured on: its prompts, its held-out pairs.
    assert all(step["kl/past/owner"] >= -ROUNDING for step in ran.metrics(1, "round1"))
    matrix = ran.evidence.matrix()
    assert matrix.suites == ("general", "round0", "round1")
    assert all(score is not None for row in matrix.rows for score in row.scores)


def test_an_interrupted_round_goes_on_with_the_rows_it_began_with(tmp_path: Path) -> None:
    drop(tmp_path, pairs("demo://rev?n=60"))
    spec = {**FED, "steps": 3, "checkpoint_every": 1}
    with pytest.raises(RuntimeError, match="stopped by the test"):
        run(tmp_path, spec, watcher=Watcher(stop_at=("round0", 1)))
    inbox = inbox_of(tmp_path)
    before = inbox.reservations()
    drop(tmp_path, pairs("demo://inc?n=60"))
    ran = run(tmp_path, spec)
    assert any("goes on from step 2" in note for note in ran.watcher.notes)
    assert [reservation.newest for reservation in inbox.reservations()] == [
        reservation.newest for reservation in before
    ]
    assert inbox.waiting("taste").count == len(pairs("demo://inc?n=60"))


def test_a_campaign_goes_on_after_a_purge_of_what_a_round_is_measured_on(tmp_path: Path) -> None:
    drop(tmp_path, [{**row, "user": "ann"} for row in pairs("demo://rev?n=60")])
    ran = run(tmp_path, FED)
    ledger, store = ran.evidence.ledger, ran.config.folder
    done = purge(Store(store, ledger), stream_forms(ran.config), "ann")
    assert done.rounds == ("round0",)
    assert done.num_replayed > 0
    drop(tmp_path, pairs("demo://inc?n=80"), "more.jsonl")
    ran = run(tmp_path, FED, FED)
    assert [record.state for record in ran.evidence.ledger.rounds()] == ["accepted", "accepted"]


def test_nothing_has_arrived(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has nothing new for round 'round0'"):
        run(tmp_path, FED)


def test_rows_too_few_to_hold_any_out_stay_for_later(tmp_path: Path) -> None:
    drop(tmp_path, pairs("demo://rev?n=60")[:5])
    with pytest.raises(UserError, match="held out, at least 8"):
        run(tmp_path, FED)
    drop(tmp_path, pairs("demo://rev?n=60"))
    assert run(tmp_path, FED).evidence.ledger.rounds()[0].state == "accepted"


def test_a_campaign_is_checked_before_anything_has_arrived(tmp_path: Path) -> None:
    config = campaign(tmp_path, rounds=rounds({}, FED))
    inputs = load_inputs(config)
    assert inputs.awaited == {"round1"}
    assert [suite.name for suite in inputs.suites] == ["general", "round0"]
    assert list(stream_forms(config)) == ["taste"]
    assert not (tmp_path / "store").exists()


def test_what_cannot_learn_from_the_inbox(tmp_path: Path) -> None:
    sft = {**FED, "algorithm": "sft"}
    with pytest.raises(ValueError, match="the inbox holds pairs and ratings, and sft learns from"):
        campaign(tmp_path, rounds=rounds(sft))


def test_rounds_share_a_stream_only_where_they_read_the_same_rows(tmp_path: Path) -> None:
    again = {**FED, "data": {**DATA, "use": "all"}}
    config = campaign(tmp_path, rounds=rounds(FED, FED, again, again))
    asked = [spec.asks for spec in config.rounds]
    assert len({asked[0], asked[1], asked[2]}) == 3
    assert asked[2] == asked[3]

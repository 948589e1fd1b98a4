"""Forecasts of runs, compared with the runs; a forecast changes nothing."""

from __future__ import annotations

import hashlib
import itertools
import json
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError
from typer.testing import CliRunner

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.errors import StoreError
from align.learner.folder.sizes import (
    ANCHOR_CACHE,
    checkpoint_bytes,
    folder_bytes,
    learner_memory,
    num_trained,
    snapshot_bytes,
)
from align.report.forecast.forecast import forecast, step_counts
from align.round.inputs import load_inputs
from align.schedule.claims import Dues
from align.schedule.inbox.inbox import Inbox
from align.schedule.inbox.rows import stream_forms
from align.store.ledger.copy import ledger_copy
from align.store.ledger.tables.inbox import inbox_streams
from align.store.store import open_ledger
from launch.cli import app
from tests.unit.campaigns import Starter, Watcher, campaign, raw_campaign
from tests.unit.nights import with_nights

LORA = {"rank": 4, "alpha": 8, "targets": ["q_proj", "down_proj"]}


def tree(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by name, without those that SQLite has beside an open ledger."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [path for path in files if not path.name.endswith(("-wal", "-shm"))]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def rows(path: Path) -> list[str]:
    with sqlite3.connect(f"file:{path}?immutable=1", uri=True) as database:
        return list(database.iterdump())


def model_of(config: CampaignConfig) -> Path:
    return load_inputs(config).model


def test_before_the_first_run(tmp_path: Path) -> None:
    config = campaign(tmp_path)
    found = forecast(config)
    assert not (tmp_path / "store").exists()
    assert (found.began, [r.state for r in found.rounds]) == (False, ["due", "due"])
    first, second = found.rounds
    # Of 20 completions a step: nothing to replay at first, then a fifth each for past and general.
    assert (first.new, first.past, first.general) == (pytest.approx(4.0), 0.0, 4.0)
    assert (second.new, second.past, second.general) == (pytest.approx(3.0), 4.0, 4.0)
    assert first.completions == second.completions == 2 * 20
    assert first.tokens == 2 * 20 * 6
    assert first.measured == 3 * 30  # Two rounds' suites and the general one.
    assert found.disk.base == folder_bytes(model_of(config))
    assert found.disk.needed == found.disk.base + found.disk.snapshots + found.disk.checkpoint


def test_as_forecast_so_done(tmp_path: Path) -> None:
    """Completions of every step, as they were sampled, and bytes of every snapshot."""
    config = campaign(tmp_path)
    found, starter = forecast(config), Starter()
    run_campaign(config, start_engine=starter, observer=Watcher())
    for index, one in enumerate(found.rounds):
        file = next((tmp_path / "store/rounds").glob(f"{index:02d}-*/attempt-1/metrics.jsonl"))
        steps = [json.loads(line) for line in file.read_text().splitlines()]
        kinds = ("new", "past", "general")
        sampled = sum(s.get(f"rollouts/{kind}", 0) for s in steps for kind in kinds)
        assert sampled == one.completions
    weights = list((tmp_path / "store/snapshots").glob("*/*.safetensors"))
    assert len(weights) == 3
    expected = snapshot_bytes(model_of(config), config.policy)
    for file in weights[1:]:
        assert file.stat().st_size == pytest.approx(expected, rel=0.05)


def test_asking_changes_nothing(tmp_path: Path) -> None:
    config = campaign(tmp_path)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        run_campaign(config, start_engine=Starter(), observer=Watcher(stop_at=("second", 0)))
    before, records = tree(tmp_path), rows(tmp_path / "store/ledger.db")
    first, second = forecast(config).rounds
    assert (first.state, first.memory, first.steps) == ("accepted", None, 0)
    assert (second.state, second.steps) == ("due", 2)
    assert tree(tmp_path) == before
    assert rows(tmp_path / "store/ledger.db") == records


def test_a_round_that_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    spec = {"name": "only", "prompts": "demo://rev?n=60", "rewards": ["exact_match"], "steps": 4}
    config = campaign(tmp_path, rounds=[{**spec, "checkpoint_every": 1}])
    with pytest.raises(RuntimeError):
        run_campaign(config, start_engine=Starter(), observer=Watcher(stop_at=("only", 2)))
    (only,) = forecast(config).rounds
    assert (only.state, only.from_step, only.steps) == ("resumes", 3, 1)


def test_when_all_is_done(tmp_path: Path) -> None:
    raw = raw_campaign(tmp_path)
    config = CampaignConfig.model_validate(raw | {"rounds": raw["rounds"][:1]})
    run_campaign(config, start_engine=Starter(), observer=Watcher())
    found = forecast(config)
    assert (found.to_run, found.disk.needed) == ((), 0)


def test_what_waits(tmp_path: Path) -> None:
    raw = raw_campaign(tmp_path)
    raw["rounds"][1] |= {"manual": True}
    found = forecast(CampaignConfig.model_validate(raw), datetime(2026, 1, 1, tzinfo=UTC))
    assert [one.name for one in found.rounds] == ["first"]
    assert found.claims == ()
    assert len(found.waits) == 1 and found.waits[0].startswith("second: runs when asked")


NIGHTLY: dict[str, Any] = {
    "name": "nightly",
    "when": {"new_pairs": 20},
    "algorithm": {"name": "dpo", "pairs": "file"},
    "data": {"source": "inbox://taste", "heldout": 0.5},
    "steps": 3,
}
CLOCK: dict[str, Any] = {
    "name": "weekly",
    "every": "0 3 * * *",
    "prompts": "demo://inc",
    "rewards": ["exact_match"],
    "steps": 2,
}


def with_feedback(folder: Path, rows: int = 25, **changes: Any) -> CampaignConfig:
    """A campaign of schedules, a clock among them that was last looked at in January."""
    config = campaign(folder, rounds=[NIGHTLY, CLOCK], **changes)
    ledger = open_ledger(config)
    Dues(ledger.database, config).claim(datetime(2026, 1, 1, tzinfo=UTC))
    form = stream_forms(config)["taste"]
    pairs = [{"prompt": f"rev _ {i} =", "chosen": f"{i}", "rejected": "0 0"} for i in range(rows)]
    Inbox(ledger.database).add("taste", [form.read(pair, "test") for pair in pairs])
    return config


def test_what_would_be_claimed(tmp_path: Path) -> None:
    """Rounds that are due and that nobody has claimed: what they take is shown, and they stay unclaimed."""
    config = with_feedback(tmp_path)
    before = rows(tmp_path / "store/ledger.db")
    found = forecast(config, datetime(2026, 1, 2, 3, 1, tzinfo=UTC))
    assert rows(tmp_path / "store/ledger.db") == before
    nightly, weekly = found.to_run
    assert found.claims[0].endswith("-> nightly-1: 25 of 20 new rows in inbox://taste")
    assert found.claims[1].startswith("cron/2026-01-02T03:00Z -> weekly-1")
    assert (nightly.name, nightly.state, nightly.steps) == ("nightly-1", "unclaimed", 3)
    assert (weekly.name, weekly.state, weekly.completions) == ("weekly-1", "unclaimed", 2 * 20)
    assert nightly.memory is not None and nightly.memory.moments > 0
    assert found.disk.snapshots == 2 * snapshot_bytes(model_of(config), config.policy)
    assert found.waits == ()


def test_a_round_that_was_claimed_is_due(tmp_path: Path) -> None:
    config = with_feedback(tmp_path)
    now = datetime(2026, 1, 2, 3, 1, tzinfo=UTC)
    Dues(open_ledger(config).database, config).claim(now)
    found = forecast(config, now)
    assert [(one.name, one.state) for one in found.rounds] == [
        ("nightly-1", "due"),
        ("weekly-1", "due"),
    ]
    assert found.claims == ()


def test_a_due_round_is_not_nothing(tmp_path: Path) -> None:
    with_feedback(tmp_path)
    raw = raw_campaign(tmp_path, rounds=[NIGHTLY])
    for name, more, shown in (
        ("due", {}, "unclaimed"),
        ("early", {"when": {"new_pairs": 99}}, "nothing to run: nothing is due now"),
    ):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(raw | {"rounds": [NIGHTLY | more]}))
        run = CliRunner().invoke(app, ["plan", str(path)], catch_exceptions=False)
        assert shown in run.output
        assert ("nothing to run" in run.output) == (name == "early")


def test_a_copy_holds_what_can_be_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The copy has the number of waiting rows, and nothing that people wrote."""
    config = with_feedback(tmp_path)
    original = Inbox(open_ledger(config).database)
    for watermark, waiting in ((0, 25), (20, 5), (25, 0)):
        with original.database.write() as connection:
            connection.execute(update(inbox_streams).values(watermark=watermark))
        with ledger_copy(config) as copied:
            file = Path(str(copied.database.engine.url.database))
            (own,), (other,) = Inbox(copied.database).counts(), original.counts()
            assert own.waiting == waiting
            assert replace(own, ready=other.ready) == other
            assert b"rev _ 7 =" not in file.read_bytes()
            assert not caplog.messages, "a fresh file is nobody else's from the start"
        assert not file.exists()


def test_a_copy_shows_what_it_does_not_copy(tmp_path: Path) -> None:
    evidence = with_nights(tmp_path, 30)
    config, original = evidence.config, evidence.ledger
    original.database.engine.dispose()
    before = sorted(path.name for path in config.folder.iterdir())
    with ledger_copy(config) as copied:
        assert copied.rounds() == original.rounds()
        assert copied.evaluations() == original.evaluations()
        with closing(sqlite3.connect(str(copied.database.engine.url.database))) as file:
            counts = [file.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                      for table in ("rounds", "evaluations", "due_claims")]  # fmt: skip
        assert counts == [0, 0, 30]
        with (
            pytest.raises(OperationalError, match="it is a view"),
            copied.database.engine.begin() as connection,
        ):
            connection.exec_driver_sql("DELETE FROM rounds")
        with copied.database.write() as connection:
            connection.exec_driver_sql("DELETE FROM due_since")
    original.database.engine.dispose()
    assert sorted(path.name for path in config.folder.iterdir()) == before


def test_a_copy_is_one_view_of_a_ledger_that_grows(tmp_path: Path) -> None:
    """Rows and the counter of their stream are written in one transaction, and copied from one."""
    config = with_feedback(tmp_path, rows=0)
    inbox, form = Inbox(open_ledger(config).database), stream_forms(config)["taste"]
    stop = threading.Event()

    def send() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            texts = [f"{number} {i} " + "x" * 5000 for i in range(10)]
            pairs = [{"prompt": t, "chosen": "1", "rejected": "0"} for t in texts]
            inbox.add("taste", [form.read(pair, "test") for pair in pairs])

    sender = threading.Thread(target=send)
    sender.start()
    seen = []
    try:
        while len(seen) < 10:
            with ledger_copy(config) as copied:
                seen += [(one.waiting, one.newest) for one in Inbox(copied.database).counts()]
    finally:
        stop.set()
        sender.join()
    assert all(waiting == newest for waiting, newest in seen)
    assert seen[0] < seen[-1]


def test_what_is_no_ledger(tmp_path: Path) -> None:
    config = campaign(tmp_path)
    (tmp_path / "store").mkdir()
    (tmp_path / "store/ledger.db").write_text("something else entirely" * 100)
    with pytest.raises(StoreError, match="this is no ledger"):
        forecast(config)


@pytest.mark.parametrize(
    ("changes", "before", "expected"),
    [
        ({}, 0, (4.0, 0.0, 4.0)),
        ({}, 1, (3.0, 4.0, 4.0)),
        ({"replay": {"past": 0.5, "general": 0.0, "samples_per_prompt": 2}}, 1, (2.5, 5.0, 0.0)),
        ({"replay": {"past": 0.0, "general_prompts": None}}, 3, (5.0, 0.0, 0.0)),
    ],
)
def test_prompts_of_a_step(
    tmp_path: Path, changes: dict[str, Any], before: int, expected: tuple[float, ...]
) -> None:
    raw = raw_campaign(tmp_path)
    raw["rounds"][0] |= changes
    spec = CampaignConfig.model_validate(raw).rounds[0]
    assert step_counts(spec, before) == pytest.approx(expected)


def test_memory_of_full_weights(tmp_path: Path) -> None:
    """Sixteen bytes a parameter, and one frozen copy for each of two anchors."""
    config = campaign(tmp_path)
    model = model_of(config)
    p = num_trained(model, config.policy)
    found = learner_memory(model, config.policy, config.rounds[0])
    assert (found.weights, found.gradients, found.moments) == (4 * p, 4 * p, 8 * p)
    assert (found.anchors, found.critic) == (2 * 4 * p, 0)
    assert found.total == 24 * p < ANCHOR_CACHE
    assert checkpoint_bytes(model, config.policy) == 12 * p
    halved = config.policy.model_copy(update={"ranks": 2})
    dealt = learner_memory(model, halved, config.rounds[0])
    assert (dealt.weights, dealt.moments, dealt.anchors) == (2 * p, 4 * p, 8 * p)


def test_memory_of_an_adapter(tmp_path: Path) -> None:
    """The adapter has as many parameters as peft makes, over a frozen base."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = campaign(tmp_path, policy={"model": "demo://digits", "lora": LORA})
    model = model_of(config)
    made = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model),
        LoraConfig(r=4, target_modules=LORA["targets"]),
    )
    trained = sum(p.numel() for p in made.parameters() if p.requires_grad)
    assert num_trained(model, config.policy) == trained
    found = learner_memory(model, config.policy, config.rounds[0])
    assert (found.gradients, found.moments) == (4 * trained, 8 * trained)
    assert found.weights > 10 * found.gradients
    assert snapshot_bytes(model, config.policy) == 4 * trained


def test_a_critic_of_its_own(tmp_path: Path) -> None:
    raw = raw_campaign(tmp_path)
    raw["rounds"][0]["algorithm"] = {"name": "ppo", "critic": {"model": None}}
    config = CampaignConfig.model_validate(raw)
    model = model_of(config)
    found = learner_memory(model, config.policy, config.rounds[0])
    assert found.critic == 16 * num_trained(model, config.policy)
    dealt = config.policy.model_copy(update={"ranks": 2})
    assert 2 * learner_memory(model, dealt, config.rounds[0]).critic == found.critic


@pytest.mark.parametrize("words", [["plan"], ["run", "--dry-run"]])
def test_the_commands(tmp_path: Path, words: list[str]) -> None:
    path = tmp_path / "campaign.json"
    path.write_text(json.dumps(raw_campaign(tmp_path)))
    run = CliRunner().invoke(app, [words[0], str(path), *words[1:]], catch_exceptions=False)
    assert run.exit_code == 0
    assert "1 x engine (1 CPU each)" in run.output
    assert "second" in run.output and "grpo" in run.output
    assert list(tmp_path.iterdir()) == [path]


def test_the_plan_for_programs(tmp_path: Path) -> None:
    path = tmp_path / "campaign.json"
    path.write_text(json.dumps(raw_campaign(tmp_path)))
    run = CliRunner().invoke(app, ["plan", str(path), "--json"], catch_exceptions=False)
    found = json.loads(run.stdout)
    assert [one["completions"] for one in found["rounds"]] == [40, 40]
    assert found["disk"]["needed"] > 0 and found["processes"] == ["1 x engine (1 CPU each)"]

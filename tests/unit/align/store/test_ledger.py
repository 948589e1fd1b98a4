"""The ledger's promises: one truth, atomic verdicts, an append-only production.

I1, I2, I4 and I10 in the names below are the invariants: production only ever names an accepted
snapshot; its moves are logged and compare-and-set; a verdict is there as a whole or not at all; a
replaced runner cannot write.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from align.errors import StaleAttempt, StoreError, UserError
from align.store.ledger.ledger import Ledger, RoundRecord
from tests.unit.ledgers import (
    BASE,
    CONFIG,
    FIRST,
    MOVE,
    REPORT,
    SECOND,
    python,
    raw,
    started,
    state,
    url,
)

# The life of a round


def test_a_new_campaign_has_planned_rounds(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    assert state(ledger) == [("reverse", "planned", 0), ("sort", "planned", 0)]
    assert ledger.alias("production") == BASE.id


def test_an_accepted_round_moves_production_and_says_why(tmp_path: Path) -> None:
    ledger = started(tmp_path, clock=lambda: 86400.5)
    attempt = ledger.begin_round(0, "reverse", BASE.id)
    assert state(ledger)[0] == ("reverse", "running", 1)
    ledger.enter_gating(0, attempt, FIRST.id)
    assert state(ledger)[0] == ("reverse", "gating", 1)
    ledger.commit_round(0, attempt, "accepted", FIRST.id, REPORT)

    assert Ledger(url(tmp_path)).rounds()[0] == RoundRecord(
        index=0,
        attempt=1,
        name="reverse",
        state="accepted",
        parent=BASE.id,
        candidate=FIRST.id,
        report=REPORT,
        started="1970-01-02T00:00:00.500+00:00",
        ended="1970-01-02T00:00:00.500+00:00",
    )
    assert ledger.alias("production") == FIRST.id
    moves = [(m.seq, m.previous, m.target, m.round) for m in ledger.alias_moves()]
    assert moves == [(1, None, BASE.id, None), (2, BASE.id, FIRST.id, 0)]
    assert ledger.alias_moves()[1].reason == "round 'reverse' was accepted"


@pytest.mark.parametrize("verdict", ["rejected", "failed"])
def test_a_round_that_is_not_accepted_leaves_production(tmp_path: Path, verdict: Any) -> None:
    ledger = started(tmp_path)
    attempt = ledger.begin_round(0, "reverse", BASE.id)
    ledger.enter_gating(0, attempt, FIRST.id)
    ledger.commit_round(0, attempt, verdict, FIRST.id, {"why": "general fell"})
    assert state(ledger)[0] == ("reverse", verdict, 1)
    assert ledger.rounds()[0].report == {"why": "general fell"}
    assert ledger.alias("production") == BASE.id
    assert len(ledger.alias_moves()) == 1


def test_a_failed_attempt_stays_on_record_and_the_next_one_is_numbered(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    ledger.commit_round(
        0, ledger.begin_round(0, "reverse", BASE.id), "failed", None, {"why": "nan"}
    )
    assert ledger.begin_round(0, "reverse", BASE.id) == 2
    assert state(ledger)[0] == ("reverse", "running", 2)
    history = [(r.attempt, r.state, r.report) for r in ledger.attempts() if r.index == 0]
    assert history == [(0, "planned", None), (1, "failed", {"why": "nan"}), (2, "running", None)]


def test_an_interrupted_attempt_is_closed_by_the_next(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    ledger.enter_gating(0, ledger.begin_round(0, "reverse", BASE.id), FIRST.id)
    again = Ledger(url(tmp_path))
    assert again.begin_round(0, "reverse", BASE.id) == 2
    first = again.attempts()[1]
    assert (first.state, first.report, first.candidate) == (
        "failed",
        {"reason": "interrupted"},
        FIRST.id,
    )


def test_i10_a_replaced_runner_cannot_write(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    old = ledger.begin_round(0, "reverse", BASE.id)
    new = ledger.begin_round(0, "reverse", BASE.id)
    replaced = r"attempt 1 .* was replaced by attempt 2"
    with pytest.raises(StaleAttempt, match=replaced):
        ledger.enter_gating(0, old, FIRST.id)
    with pytest.raises(StaleAttempt, match=replaced):
        ledger.commit_round(0, old, "failed", None, {})
    ledger.enter_gating(0, new, FIRST.id)
    with pytest.raises(StaleAttempt):
        ledger.commit_round(0, old, "accepted", FIRST.id, REPORT)
    assert state(ledger)[0] == ("reverse", "gating", 2)
    assert ledger.alias("production") == BASE.id


def test_illegal_steps_are_refused_and_change_nothing(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    with pytest.raises(ValueError, match="no round 7"):
        ledger.begin_round(7, "reverse", BASE.id)
    with pytest.raises(ValueError, match="is 'reverse', not 'sort'"):
        ledger.begin_round(0, "sort", BASE.id)
    with pytest.raises(ValueError, match="is planned, not running"):
        ledger.enter_gating(0, 0, FIRST.id)
    attempt = ledger.begin_round(0, "reverse", BASE.id)
    with pytest.raises(ValueError, match="'reverse' is under way"):
        ledger.begin_round(1, "sort", BASE.id)
    with pytest.raises(ValueError, match="is running and cannot become 'accepted'"):
        ledger.commit_round(0, attempt, "accepted", FIRST.id, REPORT)
    with pytest.raises(ValueError, match="call record_snapshot first"):
        ledger.enter_gating(0, attempt, "f" * 64)
    ledger.enter_gating(0, attempt, FIRST.id)
    with pytest.raises(ValueError, match="is to judge"):
        ledger.commit_round(0, attempt, "accepted", SECOND.id, REPORT)
    with pytest.raises(ValueError, match="cannot become 'promoted'"):
        ledger.commit_round(0, attempt, "promoted", FIRST.id, REPORT)  # type: ignore[arg-type]
    ledger.commit_round(0, attempt, "rejected", FIRST.id, REPORT)
    with pytest.raises(ValueError, match="a verdict is final"):
        ledger.begin_round(0, "reverse", BASE.id)
    with pytest.raises(ValueError, match="is rejected and cannot become 'accepted'"):
        ledger.commit_round(0, attempt, "accepted", FIRST.id, REPORT)
    assert state(ledger) == [("reverse", "rejected", 1), ("sort", "planned", 0)]
    assert ledger.alias("production") == BASE.id


def test_a_repaired_candidate_takes_the_place_of_the_one_that_failed(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    attempt = ledger.begin_round(0, "reverse", BASE.id)
    ledger.enter_gating(0, attempt, FIRST.id)
    ledger.enter_gating(0, attempt, SECOND.id)
    with pytest.raises(ValueError, match="is to judge"):
        ledger.commit_round(0, attempt, "accepted", FIRST.id, REPORT)
    ledger.commit_round(0, attempt, "accepted", SECOND.id, REPORT)
    assert ledger.alias("production") == SECOND.id


def test_a_round_starts_from_production(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    with pytest.raises(StaleAttempt, match="production is"):
        ledger.begin_round(0, "reverse", FIRST.id)
    assert state(ledger)[0] == ("reverse", "planned", 0)


# Production


def test_i1_production_is_set_by_hand_only_once(tmp_path: Path) -> None:
    ledger = Ledger(url(tmp_path))
    ledger.open_campaign("digits", CONFIG, "hash-1")
    assert ledger.alias("production") is None
    with pytest.raises(ValueError, match="call record_snapshot first"):
        ledger.set_alias_initial("production", BASE.id)
    ledger.record_snapshot(BASE)
    ledger.set_alias_initial("production", BASE.id)
    with pytest.raises(ValueError, match="only an accepted round moves it"):
        ledger.set_alias_initial("production", BASE.id)


def test_i1_no_hand_can_move_production_without_an_accept_record(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    with (
        pytest.raises(ValueError, match="no round accepted it"),
        ledger._database.write() as connection,
    ):
        ledger._move(connection, "production", BASE.id, FIRST.id, 0, "")

    attempt = ledger.begin_round(0, "reverse", BASE.id)
    ledger.enter_gating(0, attempt, FIRST.id)
    for round_ in (0, None):
        with (
            raw(tmp_path) as connection,
            pytest.raises(
                sqlite3.IntegrityError, match="only to the candidate of an accepted round"
            ),
        ):
            connection.execute(MOVE, (BASE.id, FIRST.id, round_))
    assert ledger.alias("production") == BASE.id

    ledger.commit_round(0, attempt, "accepted", FIRST.id, REPORT)
    with raw(tmp_path) as connection:
        with pytest.raises(
            sqlite3.IntegrityError, match="only to the candidate of an accepted round"
        ):
            connection.execute(MOVE, (FIRST.id, SECOND.id, 0))
        with pytest.raises(sqlite3.IntegrityError, match="does not point where"):
            connection.execute(MOVE, (BASE.id, FIRST.id, 0))
    assert ledger.alias("production") == FIRST.id


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("UPDATE alias_moves SET target = previous", "append-only"),
        ("DELETE FROM alias_moves", "append-only"),
        ("UPDATE rounds SET state = 'rejected' WHERE state = 'accepted'", "final"),
        ("DELETE FROM rounds WHERE state = 'accepted'", "final"),
        ("UPDATE rounds SET state = 'running' WHERE attempt = 0", "UNIQUE"),
        ("UPDATE rounds SET state = 'done' WHERE state = 'planned'", "CHECK"),
        ("UPDATE rounds SET state = 'gating' WHERE \"index\" = 1", "CHECK"),
        ("INSERT INTO campaigns VALUES (2, 'other', '', '', '')", "CHECK"),
    ],
)
def test_i2_the_database_keeps_the_record_unchanged(
    tmp_path: Path, statement: str, why: str
) -> None:
    ledger = started(tmp_path)
    attempt = ledger.begin_round(0, "reverse", BASE.id)
    ledger.enter_gating(0, attempt, FIRST.id)
    ledger.commit_round(0, attempt, "accepted", FIRST.id, REPORT)
    with raw(tmp_path) as connection, pytest.raises(sqlite3.IntegrityError, match=f"(?i){why}"):
        connection.execute(statement)


def test_i4_a_commit_that_is_cut_at_any_statement_leaves_the_round_gating(tmp_path: Path) -> None:
    class Cut(Exception):
        """Stands for a failure between two statements."""

    ledger = started(tmp_path)
    attempt = ledger.begin_round(0, "reverse", BASE.id)
    ledger.enter_gating(0, attempt, FIRST.id)
    before = ledger.attempts(), ledger.alias_moves()

    for cut_at in itertools.count():
        seen = itertools.count()

        def cut(*_: Any, cut_at: int = cut_at, seen: Iterator[int] = seen) -> None:
            if next(seen) == cut_at:
                raise Cut

        event.listen(ledger._database.engine, "before_cursor_execute", cut)
        event.listen(ledger._database.engine, "commit", cut)
        try:
            ledger.commit_round(0, attempt, "accepted", FIRST.id, REPORT)
            break
        except Cut:
            pass
        finally:
            event.remove(ledger._database.engine, "before_cursor_execute", cut)
            event.remove(ledger._database.engine, "commit", cut)
        fresh = Ledger(url(tmp_path))
        assert (fresh.attempts(), fresh.alias_moves()) == before, f"cut at statement {cut_at}"
    assert cut_at >= 6
    assert ledger.alias("production") == FIRST.id


KILLED = """
import os, sys
from sqlalchemy import event
from align.store.ledger.ledger import Ledger
ledger, cut_at = Ledger(sys.argv[1]), int(sys.argv[2])
seen = iter(range(10**6))
def die(*_):
    if next(seen) == cut_at:
        os._exit(9)
event.listen(ledger._database.engine, "before_cursor_execute", die)
event.listen(ledger._database.engine, "commit", die)
ledger.commit_round(0, 1, "accepted", "b" * 64, {})
"""


def test_i4_a_process_killed_before_the_commit_leaves_the_round_gating(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    ledger.enter_gating(0, ledger.begin_round(0, "reverse", BASE.id), FIRST.id)
    for cut_at in (4, 7):  # after the verdict is written; after production is moved
        child = python(KILLED, url(tmp_path), str(cut_at))
        assert child.wait() == 9
        assert (state(ledger)[0], ledger.alias("production")) == (("reverse", "gating", 1), BASE.id)
    ledger.commit_round(0, 1, "accepted", FIRST.id, REPORT)
    assert (state(ledger)[0], ledger.alias("production")) == (("reverse", "accepted", 1), FIRST.id)


# The database


def test_a_newer_ledger_asks_for_an_update(tmp_path: Path) -> None:
    started(tmp_path)
    with raw(tmp_path) as connection:
        connection.execute("UPDATE store_schema SET version = 2")
    with pytest.raises(StoreError, match=r"(?s)version 2 is newer than 1.*update Keel"):
        Ledger(url(tmp_path))


def test_a_ledger_of_version_1_stays_readable(tmp_path: Path) -> None:
    with raw(tmp_path) as connection:
        connection.executescript((Path(__file__).parents[2] / "data" / "ledger-v1.sql").read_text())
    ledger = Ledger(url(tmp_path))
    ledger.open_campaign("digits", CONFIG, "hash-1")
    assert state(ledger) == [("reverse", "accepted", 1), ("sort", "planned", 0)]
    assert ledger.rounds()[0].report == REPORT
    assert ledger.alias("production") == FIRST.id
    assert ledger.evaluations()[0].mean == 0.75
    assert ledger.begin_round(1, "sort", FIRST.id) == 1


@pytest.mark.parametrize(
    "bad",
    [
        "nonsense",
        "nodriver://x/y",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:////nowhere/a?b/c.db",
    ],
)
def test_an_unusable_url_is_a_user_error(bad: str) -> None:
    with pytest.raises(UserError):
        Ledger(bad)


def test_a_file_that_is_no_ledger_is_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    file.write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="this is no ledger"):
        Ledger(url(tmp_path))
    assert file.read_bytes() == b"not a database" * 100


def test_commits_are_synchronous_and_logged_ahead(tmp_path: Path) -> None:
    with started(tmp_path)._database.read() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 2,  # FULL
        "foreign_keys": 1,
        "busy_timeout": 30000,
    }


def test_a_full_database_says_so_and_loses_nothing(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    attempt = ledger.begin_round(0, "reverse", BASE.id)
    ledger.enter_gating(0, attempt, FIRST.id)

    def no_room(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # raised to the current size

    ledger._database.engine.dispose()
    event.listen(ledger._database.engine, "connect", no_room)
    with pytest.raises(StoreError, match="database or disk is full"):
        ledger.commit_round(0, attempt, "accepted", FIRST.id, {"long": "x" * 10**6})
    event.remove(ledger._database.engine, "connect", no_room)
    ledger._database.engine.dispose()
    assert state(ledger)[0] == ("reverse", "gating", 1)
    ledger.commit_round(0, attempt, "accepted", FIRST.id, REPORT)
    assert ledger.alias("production") == FIRST.id


def test_evaluations_are_found_by_exact_suite_and_never_replaced(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    ledger.record_evaluation(FIRST.id, "general", "h1", "evals/b-h1.parquet", 1500, 0.75)
    ledger.record_evaluation(FIRST.id, "general", "h1", "evals/b-h1.parquet", 1500, 0.75)
    ledger.record_evaluation(SECOND.id, "general", "h1", "evals/c-h1.parquet", 1500, 0.5)
    found = ledger.find_evaluation(FIRST.id, "h1")
    assert found is not None
    assert (found.suite, found.path, found.n, found.mean) == (
        "general",
        "evals/b-h1.parquet",
        1500,
        0.75,
    )
    assert ledger.find_evaluation(FIRST.id, "h2") is None
    assert [record.snapshot for record in ledger.evaluations()] == [FIRST.id, SECOND.id]
    assert ledger.evaluations(SECOND.id) == [ledger.find_evaluation(SECOND.id, "h1")]
    with pytest.raises(ValueError, match="already has results"):
        ledger.record_evaluation(FIRST.id, "general", "h1", "evals/b-h1.parquet", 1500, 0.76)
    with pytest.raises(ValueError, match="call record_snapshot first"):
        ledger.record_evaluation("f" * 64, "general", "h1", "x.parquet", 1, 0.0)

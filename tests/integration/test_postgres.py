"""What a ledger promises, on a real PostgreSQL server: the tests of the ledger, its claims and the inbox
again, and what only a server can do."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from sqlite3 import IntegrityError
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import event

from align.errors import RunError, StaleAttempt, StoreError
from align.report.forecast.forecast import forecast
from align.schedule.inbox.inbox import Inbox
from align.store.database import postgres
from align.store.ledger.due_rounds import claimed_rounds
from align.store.ledger.ledger import Ledger
from tests.integration.servers import postgres_server
from tests.patience import patient
from tests.unit import ledgers
from tests.unit.align.report.test_plan import with_feedback
from tests.unit.align.schedule.test_inbox import (  # noqa: F401
    test_a_crash_before_the_verdict_is_written_spends_nothing,
    test_a_failed_attempt_spends_nothing_and_the_next_reads_the_same,
    test_a_limit_leaves_the_rest_to_the_next_round,
    test_a_repeated_request_gets_its_answer_again,
    test_a_reservation_of_an_unfinished_round_is_released,
    test_a_round_takes_what_is_there_when_it_begins,
    test_a_row_is_stored_once,
    test_a_verdict_needs_the_watermark_where_the_round_found_it,
    test_i12_a_verdict_spends_the_rows,
    test_i14_rejected_rows_return_where_the_round_says_so,
    test_more_rows_than_a_query_names,
    test_old_requests_are_forgotten,
    test_what_a_policy_reads_twice,
    test_what_waits,
)
from tests.unit.align.store.test_inbox_machine import InboxMachine
from tests.unit.align.store.test_leases import (  # noqa: F401
    test_a_killed_process_is_taken_over_at_once,
    test_a_lease_is_released_by_an_exception,
    test_a_replaced_runner_does_not_release_its_successors_lease,
    test_a_reused_pid_is_not_the_owner,
    test_a_runner_elsewhere_is_not_replaced_while_it_renews_in_a_long_step,
    test_a_second_lease_is_refused_while_the_first_lives,
    test_a_silent_runner_elsewhere_is_replaced_and_told,
    test_i10_of_six_processes_on_a_fresh_store_exactly_one_wins,
)
from tests.unit.align.store.test_ledger import (  # noqa: F401
    test_a_failed_attempt_stays_on_record_and_the_next_one_is_numbered,
    test_a_new_campaign_has_planned_rounds,
    test_a_newer_ledger_asks_for_an_update,
    test_a_repaired_candidate_takes_the_place_of_the_one_that_failed,
    test_a_round_starts_from_production,
    test_a_round_that_is_not_accepted_leaves_production,
    test_an_accepted_round_moves_production_and_says_why,
    test_an_interrupted_attempt_is_closed_by_the_next,
    test_evaluations_are_found_by_exact_suite_and_never_replaced,
    test_i1_no_hand_can_move_production_without_an_accept_record,
    test_i1_production_is_set_by_hand_only_once,
    test_i2_the_database_keeps_the_record_unchanged,
    test_i4_a_commit_that_is_cut_at_any_statement_leaves_the_round_gating,
    test_i4_a_process_killed_before_the_commit_leaves_the_round_gating,
    test_i10_a_replaced_runner_cannot_write,
    test_illegal_steps_are_refused_and_change_nothing,
)
from tests.unit.align.store.test_ledger_machine import LedgerMachine
from tests.unit.inboxes import feedback
from tests.unit.ledgers import BASE, FIRST, MOVE, REPORT, raw, started, url


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[str]:
    with postgres_server() as found:
        ledgers.SERVER = found
        yield found
        ledgers.SERVER = None


@pytest.mark.parametrize("machine", [LedgerMachine, InboxMachine])
def test_any_order_of_calls_keeps_the_invariants(machine: Any) -> None:
    limits = settings(max_examples=4, stateful_step_count=20, deadline=None)
    run_state_machine_as_test(machine, settings=limits)


def test_writers_come_one_after_the_other(tmp_path: Path) -> None:
    ledger, order = started(tmp_path), []
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with ledger.database.write():
            entered.set()
            leave.wait(patient(10))
            order.append("first")

    def second() -> None:
        with Ledger(url(tmp_path)).database.write():
            order.append("second")

    threads = [threading.Thread(target=run) for run in (first, second)]
    threads[0].start()
    assert entered.wait(patient(10))
    threads[1].start()
    time.sleep(0.3)
    assert order == []
    leave.set()
    for thread in threads:
        thread.join(patient(20))
    assert order == ["first", "second"]


def test_a_writer_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = postgres.BEGIN_WRITE.replace(f"{postgres.LOCK_TIMEOUT_S}s", "200ms")
    monkeypatch.setattr(postgres, "BEGIN_WRITE", short)
    ledger = started(tmp_path)
    with (
        ledger.database.write(),
        pytest.raises(RunError, match="lock timeout"),
        ledger.database.write(),
    ):
        pass


def test_an_outside_hand_waits_for_the_writer_and_is_judged_by_what_it_wrote(
    tmp_path: Path,
) -> None:
    ledger = started(tmp_path)
    attempt = ledger.begin_round(0, "reverse", BASE.id)
    ledger.enter_gating(0, attempt, FIRST.id)
    refused: list[str] = []

    def outside() -> None:
        with raw(tmp_path) as connection:
            try:
                connection.execute(MOVE, (BASE.id, FIRST.id, 0))
            except Exception as error:
                refused.append(str(error))

    thread = threading.Thread(target=outside)

    def before_commit(_connection: object) -> None:
        thread.start()
        time.sleep(0.3)
        assert not refused

    event.listen(ledger.database.engine, "commit", before_commit, once=True)
    ledger.commit_round(0, attempt, "accepted", FIRST.id, REPORT)
    thread.join(patient(20))
    assert len(refused) == 1
    assert "does not point where" in refused[0]
    assert len(ledger.alias_moves()) == 2


@pytest.mark.parametrize("table", ["alias_moves", "rounds", "anchor_log"])
def test_no_hand_can_empty_a_record_at_once(tmp_path: Path, table: str) -> None:
    ledger = started(tmp_path)
    with raw(tmp_path) as connection, pytest.raises(IntegrityError, match=r"append-only|final"):
        connection.execute(f"TRUNCATE {table} CASCADE")
    assert len(ledger.rounds()) == 2


def test_a_view_stays_as_it_was(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    with ledger.database.read() as connection:
        query = "SELECT count(*) FROM rounds WHERE state = 'running'"
        before = connection.exec_driver_sql(query).scalar_one()
        ledger.begin_round(0, "reverse", BASE.id)
        assert connection.exec_driver_sql(query).scalar_one() == before == 0


def test_numbers_keep_their_digits(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    third = 1 / 3
    ledger.record_evaluation(BASE.id, "general", "s" * 64, "x.parquet", 3, third)
    ledger.record_evaluation(BASE.id, "general", "s" * 64, "x.parquet", 3, third)
    assert [record.mean for record in ledger.evaluations()] == [third]


def test_what_is_in_the_inbox_survives_the_loss_of_a_connection(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    inbox = Inbox(ledger.database)
    inbox.add("taste", [feedback(1)])
    with pytest.raises(RunError), ledger.database.write() as connection:
        killed = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        with ledger.database.engine.connect() as other:
            other.exec_driver_sql(f"SELECT pg_terminate_backend({killed})")
        connection.exec_driver_sql("DELETE FROM inbox_rows")
    assert inbox.waiting("taste").count == 1
    assert inbox.add("taste", [feedback(1)]).outcomes == ("duplicate",)


def test_a_forecast_claims_nothing_on_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_LEDGER", url(tmp_path))
    config = with_feedback(tmp_path, ledger="env:THE_LEDGER")
    found = forecast(config, datetime(2026, 1, 2, 3, 1, tzinfo=UTC))
    assert [(one.name, one.state) for one in found.rounds] == [
        ("nightly-1", "unclaimed"),
        ("weekly-1", "unclaimed"),
    ]
    assert claimed_rounds(Ledger(url(tmp_path)).database) == []


def test_two_campaigns_share_a_database_in_schemas(tmp_path: Path) -> None:
    one, other = started(tmp_path / "one"), started(tmp_path / "other")
    one.begin_round(0, "reverse", BASE.id)
    assert [record.state for record in other.rounds()] == ["planned", "planned"]


def test_a_replaced_runner_on_a_server_is_told(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    first = ledger.begin_round(0, "reverse", BASE.id)
    Ledger(url(tmp_path)).begin_round(0, "reverse", BASE.id)
    with pytest.raises(StaleAttempt):
        ledger.enter_gating(0, first, FIRST.id)


def test_a_wrong_password_is_not_shown(server: str, tmp_path: Path) -> None:
    place = quote(server.partition("host=")[2], safe="")
    with pytest.raises(StoreError) as refused:
        Ledger(f"postgresql://nobody:hush-hush@/postgres?host={place}")
    assert "cannot be reached" in str(refused.value)
    assert "nobody" in str(refused.value)
    assert "hush-hush" not in repr(refused.value) + str(refused.value)


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "CONNECT_TIMEOUT_S", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(StoreError, match="cannot be reached"):
            Ledger(f"postgresql://keel:hush-hush@127.0.0.1:{port}/keel")


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(StoreError, match="refused"):
        Ledger("postgresql://keel@127.0.0.1:9/keel")

"""A due round is claimed once, on a real PostgreSQL server as on a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.servers import postgres_server
from tests.integration.test_schedule_claims import check_claims
from tests.unit import ledgers
from tests.unit.align.schedule.test_schedule_skips import (  # noqa: F401
    test_a_round_that_has_begun_and_failed,
    test_a_round_whose_schedule_has_left_the_file,
    test_a_running_round_is_not_touched_and_a_killed_one_is_ended,
    test_other_rounds_are_skipped_while_a_runner_is_at_work,
    test_rows_stay_unused,
    test_the_record_only_grows,
    test_what_is_not_due_cannot_be_skipped,
    test_what_nobody_has_claimed_yet,
)
from tests.unit.align.store.test_schedule_claims import (  # noqa: F401
    test_a_campaign_without_schedules_is_as_it_was,
    test_a_crash_after_the_claim_loses_and_doubles_nothing,
    test_a_new_or_changed_clock_owes_nothing,
    test_a_person_asks,
    test_an_edit_changes_rounds_to_come_and_none_that_fell_due,
    test_arrivals_are_those_of_the_inbox,
    test_due_at,
    test_looking_changes_nothing,
    test_the_database_refuses_a_second_claim_of_a_key,
    test_the_ledger_takes_appended_rounds,
)


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with postgres_server() as found:
        ledgers.SERVER = found
        yield
        ledgers.SERVER = None


@pytest.mark.timeout(600)
def test_four_processes_claim_every_tick_once(tmp_path: Path) -> None:
    check_claims(tmp_path, processes=4, ticks=60)

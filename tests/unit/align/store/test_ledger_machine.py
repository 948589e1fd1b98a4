"""Any order of calls, crashes included, keeps the ledger's invariants I1, I2, I4 and I10."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from align.errors import StaleAttempt
from align.store.ledger.ledger import Ledger
from align.store.snapshots.snapshots import Snapshot
from tests.unit.ledgers import BASE, CONFIG, FIRST, MOVE, RAM, REPORT, SECOND, raw, started, url


class LedgerMachine(RuleBasedStateMachine):
    """Two runners, of which one may be long replaced, against a model of what should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.temporary = TemporaryDirectory(dir=RAM)
        self.folder = Path(self.temporary.name)
        self.ledger = started(self.folder)
        self.production = BASE.id
        self.latest = {0: (0, "planned"), 1: (0, "planned")}
        self.candidates: dict[int, str] = {}
        self.log = self.ledger.alias_moves()

    def teardown(self) -> None:
        self.temporary.cleanup()

    def live(self) -> list[int]:
        return [index for index, (_, now) in self.latest.items() if now in ("running", "gating")]

    @rule()
    def crash_and_reopen(self) -> None:
        self.ledger = Ledger(url(self.folder))
        self.ledger.open_campaign("digits", CONFIG, "hash-1")

    @rule(index=st.integers(0, 1), parent=st.sampled_from((BASE, FIRST, SECOND)))
    def begin(self, index: int, parent: Snapshot) -> None:
        attempt, now = self.latest[index]
        name = CONFIG["rounds"][index]["name"]
        if now in ("accepted", "rejected") or self.live() not in ([], [index]):
            with pytest.raises(ValueError, match=r"final|under way"):
                self.ledger.begin_round(index, name, parent.id)
        elif parent.id != self.production:
            with pytest.raises(StaleAttempt):
                self.ledger.begin_round(index, name, parent.id)
        else:
            assert self.ledger.begin_round(index, name, parent.id) == attempt + 1
            self.latest[index] = (attempt + 1, "running")

    @rule(
        index=st.integers(0, 1), candidate=st.sampled_from((FIRST, SECOND)), late=st.integers(0, 2)
    )
    def enter_gating(self, index: int, candidate: Snapshot, late: int) -> None:
        attempt, now = self.latest[index]
        if late:
            with pytest.raises(StaleAttempt):
                self.ledger.enter_gating(index, attempt - late, candidate.id)
        elif now not in ("running", "gating"):
            with pytest.raises(ValueError, match="not running"):
                self.ledger.enter_gating(index, attempt, candidate.id)
        else:
            self.ledger.enter_gating(index, attempt, candidate.id)
            self.latest[index] = (attempt, "gating")
            self.candidates[index] = candidate.id

    @rule(
        index=st.integers(0, 1),
        verdict=st.sampled_from(("accepted", "accepted", "rejected", "failed")),
        late=st.sampled_from((0, 0, 1)),
        wrong=st.booleans(),
    )
    def commit(self, index: int, verdict: Any, late: int, wrong: bool) -> None:
        attempt, now = self.latest[index]
        candidate = BASE.id if wrong else self.candidates.get(index) if now == "gating" else None
        ends = now == "gating" or (now == "running" and verdict == "failed")
        if late:
            with pytest.raises(StaleAttempt):
                self.ledger.commit_round(index, attempt - late, verdict, candidate, REPORT)
        elif not ends or wrong:
            with pytest.raises(ValueError, match=r"cannot become|is to judge"):
                self.ledger.commit_round(index, attempt, verdict, candidate, REPORT)
        else:
            self.ledger.commit_round(index, attempt, verdict, candidate, REPORT)
            self.latest[index] = (attempt, verdict)
            if verdict == "accepted":
                self.production = self.candidates[index]

    @rule(to=st.sampled_from((BASE, FIRST, SECOND)), index=st.sampled_from((0, 1, None)))
    @precondition(lambda self: all(now != "accepted" for _, now in self.latest.values()))
    def move_production_by_hand(self, to: Snapshot, index: int | None) -> None:
        with raw(self.folder) as connection, pytest.raises(sqlite3.IntegrityError):
            connection.execute(MOVE, (self.production, to.id, index))

    @invariant()
    def i1_production_is_the_base_or_accepted(self) -> None:
        accepted = {r.candidate for r in self.ledger.attempts() if r.state == "accepted"}
        assert self.ledger.alias("production") == self.production
        assert self.production in accepted | {BASE.id}

    @invariant()
    def i2_the_log_only_grows_and_every_move_continues_the_last(self) -> None:
        moves = self.ledger.alias_moves()
        assert moves[: len(self.log)] == self.log
        assert [m.previous for m in moves] == [None, *(m.target for m in moves[:-1])]
        assert len(moves) == 1 + sum(now == "accepted" for _, now in self.latest.values())
        self.log = moves

    @invariant()
    def i4_every_round_is_in_the_state_it_should_be(self) -> None:
        seen = {r.index: (r.attempt, r.state) for r in self.ledger.rounds()}
        assert seen == self.latest
        assert len(self.live()) <= 1


def test_any_order_of_calls_keeps_the_invariants() -> None:
    limits = settings(max_examples=15, stateful_step_count=20, deadline=None)
    run_state_machine_as_test(LedgerMachine, settings=limits)

"""Any order of arrivals, quarantines, attempts, crashes and verdicts, and any policy of reading: every row
is used exactly once."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from align.schedule.inbox.inbox import Inbox
from align.store.ledger.ledger import Ledger
from tests.unit.inboxes import feedback
from tests.unit.ledgers import BASE, FIRST, RAM, url

NUM_ROUNDS = 4
ROUNDS = [{"name": f"round{index}", "steps": 1} for index in range(NUM_ROUNDS)]


class InboxMachine(RuleBasedStateMachine):
    """One stream, rounds in order, against lists of what was used and what waits."""

    def __init__(self) -> None:
        super().__init__()
        self.temporary = TemporaryDirectory(dir=RAM)
        self.folder = Path(self.temporary.name)
        self.open()
        self.ledger.record_snapshot(BASE)
        self.ledger.record_snapshot(FIRST)
        self.ledger.set_alias_initial("production", BASE.id)
        self.waiting: list[int] = []
        self.used: list[int] = []
        self.aside: set[int] = set()
        self.use = "once"
        """Of the round under way."""
        self.newest = self.index = 0
        self.read: list[int] | None = None
        """What the round under way has read in its first attempt."""
        self.attempt: int | None = None

    def open(self) -> None:
        self.ledger = Ledger(url(self.folder))
        self.ledger.open_campaign("digits", {"rounds": ROUNDS}, "hash")
        self.inbox = Inbox(self.ledger.database)

    def teardown(self) -> None:
        self.temporary.cleanup()

    @rule(numbers=st.lists(st.integers(0, 30), max_size=6))
    def arrive(self, numbers: list[int]) -> None:
        receipt = self.inbox.add("taste", [feedback(number) for number in numbers])
        stored = [
            n for n, o in zip(receipt.numbers, receipt.outcomes, strict=True) if o == "stored"
        ]
        assert stored == list(range(self.newest + 1, self.newest + 1 + len(stored)))
        self.newest += len(stored)
        self.waiting += [number for number in stored if number is not None]

    @rule(data=st.data())
    @precondition(lambda self: self.waiting and self.read is None)
    def quarantine(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.waiting))
        assert self.inbox.quarantine("taste", [number], "spam") == 1
        self.waiting.remove(number)
        self.aside.add(number)

    @rule(
        use=st.sampled_from(("once", "once", "all", "last:2", "last:9")),
        limit=st.one_of(st.none(), st.integers(1, 4)),
    )
    @precondition(lambda self: self.index < NUM_ROUNDS and self.attempt is None)
    def begin(self, use: str, limit: int | None) -> None:
        name = f"round{self.index}"
        reservation = self.inbox.reserve(name, "taste", use=use, limit=limit)
        if self.read is None:
            self.use, expected = use, self.readable(use)[:limit]
        else:
            expected = self.read
        if not expected:
            assert reservation is None
            return
        assert reservation is not None
        found = [int(row.location.rpartition(" ")[2]) for row in self.inbox.read(reservation)]
        assert found == expected
        self.attempt = self.ledger.begin_round(self.index, name, BASE.id)
        self.read = found

    def readable(self, use: str) -> list[int]:
        """Return the rows that a round may read if it begins now."""
        if use == "once":
            return self.waiting
        everything = [n for n in range(1, self.newest + 1) if n not in self.aside]
        return everything if use == "all" else everything[-int(use.removeprefix("last:")) :]

    @rule()
    def crash(self) -> None:
        """The process is gone; whoever comes next begins the round again."""
        self.open()
        self.attempt = None

    @rule(verdict=st.sampled_from(("rejected", "rejected", "failed")))
    @precondition(lambda self: self.attempt is not None)
    def end(self, verdict: Any) -> None:
        assert self.attempt is not None and self.read is not None
        self.ledger.enter_gating(self.index, self.attempt, FIRST.id)
        self.ledger.commit_round(self.index, self.attempt, verdict, FIRST.id, {})
        self.attempt = None
        if verdict == "failed":
            return
        if self.use == "once":
            self.used += self.read
            self.waiting = [number for number in self.waiting if number not in self.read]
        self.read = None
        self.index += 1

    @invariant()
    def i12_every_row_waits_or_was_used_once(self) -> None:
        """Whatever rounds that read rows again did in between."""
        assert len(set(self.used)) == len(self.used)
        assert len(self.used) + len(self.waiting) + len(self.aside) == self.newest
        assert not set(self.used) & set(self.waiting)
        waiting = self.inbox.waiting("taste")
        assert (waiting.count, waiting.newest_id) == (len(self.waiting), self.newest)


def test_every_row_is_used_exactly_once() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        InboxMachine, settings=settings(max_examples=25, stateful_step_count=25, deadline=None)
    )

"""Sequence numbers of arriving rows: many senders' rows in one transaction, each row once.

A row is known by its hash, or by the sender's own key; a request by its key. Whatever comes first in the
transaction is new, and all that follows is a duplicate of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from sqlalchemy import Connection, and_, insert, select, update

from align.schedule.inbox.rows import Feedback
from align.store.ledger.tables.inbox import inbox_requests, inbox_rows, inbox_streams

RowOutcome = Literal["stored", "quarantined", "duplicate", "conflict"]
"""``duplicate``: it was there already; ``conflict``: its key came with another row before."""

CHUNK = 400
"""Values of one IN clause."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """Rows that arrive together, and are answered together."""

    stream: str
    rows: tuple[Feedback, ...]
    key: str | None = None
    """The sender's key of the request: sent again, it is answered again and not stored again."""
    digest: str = ""
    """sha256 of the request, to tell a repeated one from another one under the same key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """Outcomes of a submission's rows, in their order."""

    outcomes: tuple[RowOutcome, ...] = ()
    numbers: tuple[int | None, ...] = ()
    """Each row's number in its stream; None for a conflict."""
    repeated: bool = False
    """The answer of an earlier request with the same key."""
    refused: bool = False
    """The key belongs to an earlier, different request; nothing was stored."""

    def count(self, outcome: RowOutcome) -> int:
        return self.outcomes.count(outcome)


def number_rows(
    connection: Connection, submissions: Sequence[Submission], now: str
) -> list[Receipt]:
    """Store what is new in the submissions; the answer to each, in order."""
    answered = _answered(connection, [s.key for s in submissions if s.key])
    rows: dict[str, list[Feedback]] = {}
    for submission in submissions:
        rows.setdefault(submission.stream, []).extend(submission.rows)
    numberers = {stream: _Numberer(connection, stream, sent, now) for stream, sent in rows.items()}
    receipts = []
    for submission in submissions:
        digest, earlier = answered.get(submission.key or "", ("", None))
        if earlier is None:
            receipt = numberers[submission.stream].number(submission.rows)
            if submission.key:
                answered[submission.key] = (submission.digest, receipt)
                answer = {"outcomes": receipt.outcomes, "numbers": receipt.numbers}
                values = {"key": submission.key, "digest": submission.digest, "received": now}
                connection.execute(
                    insert(inbox_requests).values(**values, answer=json.dumps(answer))
                )
        elif digest == submission.digest:
            receipt = replace(earlier, repeated=True)
        else:
            receipt = Receipt(refused=True)
        receipts.append(receipt)
    for numberer in numberers.values():
        numberer.write()
    return receipts


class _Numberer:
    """Numbers the new rows of one stream within one transaction."""

    def __init__(
        self, connection: Connection, stream: str, rows: Sequence[Feedback], now: str
    ) -> None:
        self._connection, self._stream, self._now = connection, stream, now
        counter = select(inbox_streams.c.newest).where(inbox_streams.c.stream == stream)
        self._first = connection.scalar(counter.with_for_update())
        self._newest = self._first or 0
        self._by_hash = self._known(inbox_rows.c.hash, [row.hash for row in rows])
        self._by_key = self._known(inbox_rows.c.row_key, [row.key for row in rows if row.key])
        self._new: list[dict[str, Any]] = []

    def number(self, rows: Iterable[Feedback]) -> Receipt:
        """Assign sequence numbers to submitted rows and drop duplicates."""
        numbered = [self._number(row) for row in rows]
        return Receipt(
            outcomes=tuple(outcome for outcome, _ in numbered),
            numbers=tuple(number for _, number in numbered),
        )

    def write(self) -> None:
        """Insert what is new and move the stream's counter."""
        if not self._new:
            return
        if self._first is None:
            counter: Any = insert(inbox_streams).values(
                stream=self._stream, newest=self._newest, watermark=0
            )
        else:
            this = inbox_streams.c.stream == self._stream
            counter = update(inbox_streams).where(this).values(newest=self._newest)
        self._connection.execute(counter)
        self._connection.execute(insert(inbox_rows), self._new)

    def _number(self, row: Feedback) -> tuple[RowOutcome, int | None]:
        digest = row.hash
        known = self._by_hash.get(digest)
        if row.key is not None and row.key in self._by_key:
            same = self._by_key[row.key] == known
            return ("duplicate", known) if same else ("conflict", None)
        if known is not None:
            return "duplicate", known
        self._newest += 1
        self._by_hash[digest] = self._newest
        if row.key is not None:
            self._by_key[row.key] = self._newest
        self._new.append(
            {
                "stream": self._stream,
                "number": self._newest,
                "kind": row.kind,
                "payload": row.payload,
                "hash": digest,
                "user_key": row.user,
                "row_key": row.key,
                "source": row.source,
                "received": self._now,
                "state": "ready" if row.reason is None else "quarantined",
                "reason": row.reason,
            }
        )
        return ("stored" if row.reason is None else "quarantined"), self._newest

    def _known(self, column: Any, values: Sequence[str]) -> dict[str, int]:
        """Return the numbers of stored rows by what a column holds."""
        numbers: dict[str, int] = {}
        for chunk in chunks(values):
            these = and_(inbox_rows.c.stream == self._stream, column.in_(chunk))
            query = select(column, inbox_rows.c.number).where(these)
            numbers |= {str(value): number for value, number in self._connection.execute(query)}
        return numbers


def _answered(connection: Connection, keys: Sequence[str]) -> dict[str, tuple[str, Receipt]]:
    """Return digest and answer of earlier requests, by key."""
    answers: dict[str, tuple[str, Receipt]] = {}
    for chunk in chunks(keys):
        query = select(inbox_requests).where(inbox_requests.c.key.in_(chunk))
        for row in connection.execute(query):
            answer = json.loads(row.answer)
            receipt = Receipt(outcomes=tuple(answer["outcomes"]), numbers=tuple(answer["numbers"]))
            answers[row.key] = (row.digest, receipt)
    return answers


def chunks(values: Sequence[Any]) -> Iterator[list[Any]]:
    rest = iter(values)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk

"""Many senders, one disk: what arrives while a commit is under way shares the next one.

A commit waits for the disk, and that wait is the same for one row and for a thousand. So a thread of its
own takes all that has queued up, writes it in one transaction and only then answers: whoever has an
answer has rows on the disk. The queue is bounded; a full one refuses instead of growing.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from align.schedule.inbox.inbox import Inbox
from align.schedule.inbox.numbering import Receipt, Submission
from align.store.database.connections import keeping_log

MAX_QUEUED_ROWS = 20_000
MAX_QUEUED_CHARS = 64 << 20
MAX_GROUP_ROWS = 2_000
"""Rows of one commit, unless one submission has more."""
CLOSE_S = 60.0
"""Seconds that closing waits for what is queued."""


class QueueFull(Exception):
    """More is queued than the writer may hold; nothing of the submission was taken."""


class WriterClosed(Exception):
    """The writer takes nothing more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    submission: Submission
    chars: int
    answer: Future[Receipt] = field(default_factory=Future)


class Writer:
    """Writes submissions in groups, in the order they came. Open it with ``with``; closing drains it."""

    def __init__(
        self,
        inbox: Inbox,
        *,
        max_rows: int = MAX_QUEUED_ROWS,
        max_chars: int = MAX_QUEUED_CHARS,
    ) -> None:
        self._inbox, self._max_rows, self._max_chars = inbox, max_rows, max_chars
        self._jobs: deque[_Job] = deque()
        self._rows = self._chars = 0
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="feedback writer", daemon=True)
        self._log = ExitStack()
        self._log.enter_context(keeping_log(inbox.database.engine))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def queued(self) -> int:
        """Rows that are not on the disk yet."""
        return self._rows

    @property
    def alive(self) -> bool:
        """True if what is submitted will be written."""
        return self._thread.is_alive() and not self._closing

    def submit(self, submission: Submission) -> Future[Receipt]:
        """Queue rows; the future is done when they are on the disk, or could not be written.

        Raises:
            QueueFull: come back later.
            WriterClosed: the process is about to end.
        """
        job = _Job(submission=submission, chars=sum(len(row.payload) for row in submission.rows))
        with self._changed:
            if not self.alive:
                raise WriterClosed
            rows, chars = self._rows + len(submission.rows), self._chars + job.chars
            if self._jobs and (rows > self._max_rows or chars > self._max_chars):
                raise QueueFull
            self._rows, self._chars = rows, chars
            self._jobs.append(job)
            self._changed.notify()
        return job.answer

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Write what is queued, take nothing more. What is not written by then was never answered."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._log.close()

    def _run(self) -> None:
        while group := self._next_group():
            # Who has gone waits for no answer, and what is not answered need not be stored.
            wanted = [job for job in group if job.answer.set_running_or_notify_cancel()]
            try:
                receipts = self._inbox.add_all([job.submission for job in wanted])
            except Exception as error:
                # A full disk, say: nothing of the group was stored, and everybody is told.
                self._leave_queue(group)
                for job in wanted:
                    job.answer.set_exception(error)
            else:
                self._leave_queue(group)
                for job, receipt in zip(wanted, receipts, strict=True):
                    job.answer.set_result(receipt)

    def _leave_queue(self, group: list[_Job]) -> None:
        """Count a group as no longer queued, before its senders hear: they may ask at once."""
        with self._changed:
            self._rows -= sum(len(job.submission.rows) for job in group)
            self._chars -= sum(job.chars for job in group)

    def _next_group(self) -> list[_Job]:
        """Wait for the first submission and return what is queued by then; empty when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closing)
            group: list[_Job] = []
            num_rows = 0
            while self._jobs and num_rows < MAX_GROUP_ROWS:
                group.append(self._jobs.popleft())
                num_rows += len(group[-1].submission.rows)
            return group

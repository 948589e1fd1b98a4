"""Inboxes for the tests: the ledger of a campaign whose two rounds read one stream."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from align.config.data import ExamplesConfig
from align.schedule.inbox.inbox import Inbox
from align.schedule.inbox.rows import Feedback, StreamForm
from align.store.ledger.ledger import Ledger
from tests.unit.ledgers import started

TASTE = StreamForm(stream="taste", config=ExamplesConfig(source="inbox://taste"), kinds=("pair",))


def pair(number: int, **columns: Any) -> dict[str, Any]:
    """The row of a pair, distinct by its number."""
    return {"prompt": f"Question {number}?", "chosen": "yes", "rejected": "no", **columns}


def feedback(number: int, **columns: Any) -> Feedback:
    return TASTE.read(pair(number, **columns), "test")


def settled(file: Path) -> Path:
    """The file as if nobody had written to it lately: a sweep takes it."""
    long_ago = file.stat().st_mtime - 60.0
    os.utime(file, (long_ago, long_ago))
    return file


def opened(folder: Path) -> tuple[Ledger, Inbox]:
    """A started campaign of two rounds and its inbox."""
    ledger = started(folder)
    return ledger, Inbox(ledger.database)

"""Messages that a reward is being waited for, so that nobody takes a slow one for a dead program."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUIET_S = 1.0
"""Seconds of waiting before the first message."""
AGAIN_S = 10.0
"""Seconds between two messages on the same wait."""


@contextmanager
def saying(text: str, say: Callable[[str], None]) -> Iterator[None]:
    """Say ``text`` once the block takes longer than a moment, and again while it goes on."""
    over = threading.Event()

    def wait() -> None:
        pause = QUIET_S
        while not over.wait(pause):
            say(text)
            pause = AGAIN_S

    thread = threading.Thread(target=wait, name="keel-patience", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

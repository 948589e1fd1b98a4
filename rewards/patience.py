"""Messages that a reward is being waited for, so that nobody takes a slow one for a dead program."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

IMPORT_S = 60.0
"""Seconds for a file of one's own to be imported: its models are loaded in the first call, not there."""
SLOW_S = 5.0
"""Seconds of an import that needs no message."""
QUIET_S = 1.0
"""Seconds of waiting before the first message."""
AGAIN_S = 10.0
"""Seconds between two messages on the same wait."""


@contextmanager
def saying(text: str, say: Callable[[str], None], quiet_s: float | None = None) -> Iterator[None]:
    """Say ``text`` once the block takes longer than ``quiet_s``, by default a moment, and then at times."""
    over = threading.Event()

    def wait() -> None:
        pause = QUIET_S if quiet_s is None else quiet_s
        while not over.wait(pause):
            say(text)
            pause = max(pause, AGAIN_S)

    thread = threading.Thread(target=wait, name="keel-patience", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def importing(source: str, limit_s: float = IMPORT_S) -> Iterator[None]:
    """Import code of one's own in the block, and not for ever; threads besides the main one have no limit.

    Raises:
        TimeoutError: the import did not end in time.
    """
    with saying(f"importing {source} (at most {limit_s:g} s)", logger.warning, SLOW_S):
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def late(*_: object) -> None:
            raise TimeoutError(f"the import did not end within {limit_s:g} s")

        handler = signal.signal(signal.SIGALRM, late)
        timer = signal.setitimer(signal.ITIMER_REAL, limit_s)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, *timer)
            signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)

"""A lock that threads get in turn."""

from __future__ import annotations

import threading
from types import TracebackType


class FairLock:
    """Reentrant lock that a waiting thread gets before its holder gets it again.

    A loop that takes an `threading.RLock` for every step hardly ever leaves it to others.
    """

    def __init__(self) -> None:
        self._door, self._lock = threading.Lock(), threading.RLock()
        self._holder: int | None = None
        self._depth = 0

    def __enter__(self) -> None:
        """Wait for the lock."""
        if self._holder != threading.get_ident():
            with self._door:  # Whoever waits for the lock stands in the door, and others behind it.
                self._lock.acquire()
        else:
            self._lock.acquire()
        self._holder = threading.get_ident()
        self._depth += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the lock to the next thread."""
        self._depth -= 1
        if not self._depth:
            self._holder = None
        self._lock.release()

"""One event loop for all async rewards of a rubric, alive as long as the rubric.

It runs in a thread of its own, so that an HTTP client that a reward keeps between calls stays bound
to a living loop, and so that a rubric can be used where a loop already runs (a notebook).
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines in a background event loop; the thread starts with the first one."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine; its result is waited for with ``.result()``."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            thread = threading.Thread(
                target=self._loop.run_forever, name="keel-rewards", daemon=True
            )
            thread.start()
            weakref.finalize(self, _stop, self._loop, thread)
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=1.0)
    # A loop that a reward blocks cannot be closed; its daemon thread ends with the process.
    if not thread.is_alive():
        loop.close()

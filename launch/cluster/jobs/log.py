"""Log of a job as it grows: each part of it is written once, however often it is read from the start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable


class Log:
    """Position up to which a log was written."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._written = write, 0

    def write_rest(self, text: str, start: int = 0) -> None:
        """Write what is new in a part that begins after ``start`` characters."""
        fresh = text[max(0, self._written - start) :]
        if fresh:
            self._write(fresh)
            self._written = start + len(text)


def tail(parts: AsyncIterator[str], log: Log, limit: float, quiet_s: float) -> None:
    """Write what comes, from the log's start on, until it ends, breaks, or is silent for ``quiet_s``.

    Args:
        limit: when to stop in any case, in `time.monotonic`'s seconds.
    """
    asyncio.run(_tail(parts, log, limit, quiet_s))


async def _tail(parts: AsyncIterator[str], log: Log, limit: float, quiet_s: float) -> None:
    start = 0
    while (wait_s := min(quiet_s, limit - time.monotonic())) > 0:
        part = await _next(parts, wait_s)
        if part is None:
            return
        log.write_rest(part, start)
        start += len(part)


async def _next(parts: AsyncIterator[str], wait_s: float) -> str | None:
    """Return the next part; None if the log ended, broke, or said nothing for so long."""
    from aiohttp import ClientError

    try:
        async with asyncio.timeout(wait_s):
            return await anext(parts, None)
    except (ClientError, OSError, RuntimeError, ValueError):  # Among them TimeoutError.
        return None

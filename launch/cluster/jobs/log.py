"""Log of a job as it grows: each part of it is written once, however often it is read from the start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from rollouts.errors import RunError

if TYPE_CHECKING:
    from launch.cluster.jobs.jobs import Job


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


async def tail(parts: AsyncIterator[str], log: Log, limit: float, quiet_s: float) -> None:
    """Write what comes, from the log's start on, until it ends, breaks, or is silent for ``quiet_s``.

    Args:
        limit: when to stop in any case, in `time.monotonic`'s seconds.
    """
    from aiohttp import ClientError

    start = 0
    while (wait_s := min(quiet_s, limit - time.monotonic())) > 0:
        try:
            async with asyncio.timeout(wait_s):
                part = await anext(parts, None)
        except (ClientError, OSError, RuntimeError, ValueError):  # Among them TimeoutError.
            return
        if part is None:
            return
        log.write_rest(part, start)
        start += len(part)


NUM_LINES = 12
"""Lines shown from the end of a log in which Keel names no error of its own."""
MAX_LINES = 40
"""Lines shown at most where Keel names one: its message, and whatever came after it."""
ERROR = "error: "
"""Words that begin Keel's own message in a log."""
LOG_TAIL = "last available logs"
"""Words in Ray's reason after which it repeats the end of the log."""


def job_failure(job: Job, log: str, address: str) -> RunError:
    """Describe a job that ended without success.

    Args:
        log: everything the job has printed; empty where it cannot be had.
        address: the cluster's jobs API as it may be shown.
    """
    reason, _, repeated = (job.message or "").partition(LOG_TAIL)
    reasons = [line.strip(" ,.") for line in reason.splitlines() if line.strip()]
    if len(reasons) > 1:  # A traceback; its last line is the error.
        reasons = [reasons[0], reasons[-1]]
    lines = last_lines(log) or last_lines(repeated.partition("\n")[2])
    end = "was stopped" if job.status == "STOPPED" else "failed"
    after = f" after {job.ended - job.started:.0f} s" if job.started and job.ended else ""
    cause = f": {' ... '.join(reasons)}" if reasons else ""
    printed = "It printed last:" if lines else "It printed nothing"
    return RunError(
        "\n    ".join([f"job {job.id} {end}{after}{cause}. {printed}", *lines]),
        where=address,
        remedy=f"`keel jobs logs {job.id} --address {address}` prints its whole log; submitted again, the "
        "campaign goes on after its last finished round",
    )


def last_lines(log: str) -> list[str]:
    """Return the end of a log: from Keel's last own error on, else the last lines.

    >>> last_lines("a\\nerror: b\\n  what to do: c\\n")
    ['error: b', '  what to do: c']
    """
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    errors = [number for number, line in enumerate(lines) if line.startswith(ERROR)]
    if errors and len(lines) - errors[-1] <= MAX_LINES:
        return lines[errors[-1] :]
    return lines[-NUM_LINES:]

"""`keel schedule tick` as a process of its own: it gives its memory back and ends with its starter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

from align.config.schedule import parse_duration
from rollouts.errors import UserError
from rollouts.machine.watchdog import watched

KEEL = "from launch.cli import main; main()"
GRACE_S = 60.0
"""Seconds for a round that is told to end: engines and learner close in seconds."""
PAST_DEADLINE = 1


def run_tick(arguments: Sequence[str], limit_s: float | None, *, say: Callable[[str], None]) -> int:
    """Run ``keel schedule tick`` with these arguments and return its exit code.

    Past ``limit_s`` it is told to end. It is told the same when this process ends, however it does.
    """
    command = [sys.executable, "-c", KEEL, "schedule", "tick", *arguments]
    # A terminal's interrupt is for this process, which passes it on.
    child = subprocess.Popen(
        watched(command, GRACE_S), stdin=subprocess.PIPE, start_new_session=True
    )
    assert child.stdin is not None
    try:
        code = child.wait(limit_s)
        return code if code >= 0 else 128 - code
    except subprocess.TimeoutExpired:
        say(f"not done after {limit_s:.0f} s, the deadline; told to end")
        return PAST_DEADLINE
    finally:
        child.stdin.close()
        child.wait()


def deadline_of(text: str) -> float:
    """Read a duration in seconds.

    Raises:
        UserError: no duration.
    """
    try:
        return parse_duration(text).total_seconds()
    except ValueError as error:
        raise UserError(str(error), where="--deadline") from None

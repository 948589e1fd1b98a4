"""Sleeps until something is due, has it run, and looks again; remembers nothing that a restart would miss.

The clock, the sleep, the look and the run are given, so a year passes in a test in no time.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import NoReturn

from align.schedule.due import Due, Tick
from rollouts.errors import KeelError

DONE, REJECTED, NOTHING_DUE = 0, 3, 4
"""Exit codes of `keel schedule tick` after which nothing needs mending."""
LONGEST_PAUSE_S = 3600.0
"""Between attempts at a round that fails again and again."""


def keep(
    look: Callable[[datetime], Tick],
    run: Callable[[], int],
    *,
    poll_s: float,
    now: Callable[[], datetime],
    sleep: Callable[[float], None],
    say: Callable[[str], None],
) -> NoReturn:
    """Go on until an exception from outside ends it.

    Args:
        look: what is due, claimed; a `KeelError` is said, and looked again later.
        run: runs what is due; an exit code as of `keel schedule tick`.
    """
    failures, reported = 0, ""
    while True:
        try:
            tick = look(now())
        except KeelError as error:
            failures += 1
            say(f"error: {error}")
            sleep(pause_after(failures, poll_s))
            continue
        for due in tick.due:
            say(sentence(due))
        if not tick.due:
            waits = "; ".join(f"{waiting.schedule}: {waiting.why}" for waiting in tick.waits)
            if waits != reported:
                say(f"nothing is due. {waits}")
            reported = waits
            sleep(pause_until(tick, now(), poll_s))
            continue
        reported, code = "", run()
        if code in (DONE, REJECTED):
            failures = 0
        elif code == NOTHING_DUE:
            sleep(poll_s)  # Another runner is at it.
        else:
            failures += 1
            pause = pause_after(failures, poll_s)
            say(f"ended with exit code {code}; the round is taken up again in {pause:.0f} s")
            sleep(pause)


def sentence(due: Due) -> str:
    """Describe what is due and why."""
    return f"{due.round}: {due.reason} ({due.schedule}/{due.key})"


def pause_until(tick: Tick, now: datetime, poll_s: float) -> float:
    """Return seconds to the next moment that may matter; arrivals are looked for every ``poll_s``."""
    if tick.next is None:
        return poll_s
    return min(max((tick.next - now).total_seconds(), 0.0), poll_s)


def pause_after(failures: int, poll_s: float) -> float:
    """Return seconds after so many failures in a row: twice as long each time, up to an hour."""
    return min(poll_s * 2.0 ** min(failures - 1, 20), max(LONGEST_PAUSE_S, poll_s))

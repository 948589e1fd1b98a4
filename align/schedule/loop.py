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
    failures, told = 0, ""
    while True:
        try:
            found = look(now())
        except KeelError as error:
            failures += 1
            say(f"error: {error}")
            sleep(pause_after(failures, poll_s))
            continue
        for due in found.due:
            say(sentence(due))
        if not found.due:
            waits = "; ".join(f"{one.schedule}: {one.why}" for one in found.waits)
            if waits != told:
                say(f"nothing is due. {waits}")
            told = waits
            sleep(pause_until(found, now(), poll_s))
            continue
        told, code = "", run()
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
    """What is due and why."""
    return f"{due.round}: {due.reason} ({due.schedule}/{due.key})"


def pause_until(found: Tick, now: datetime, poll_s: float) -> float:
    """Seconds to the next moment that may matter; arrivals are looked for every ``poll_s``."""
    if found.next is None:
        return poll_s
    return min(max((found.next - now).total_seconds(), 0.0), poll_s)


def pause_after(failures: int, poll_s: float) -> float:
    """Seconds after so many failures in a row: twice as long each time, up to an hour."""
    return min(poll_s * 2.0 ** min(failures - 1, 20), max(LONGEST_PAUSE_S, poll_s))

"""Identity of a process that outlives clock steps: where it runs, its number there, and when it began.

Times are the kernel's, in ticks since it was booted: nobody sets them. A process number means something in
one PID namespace of one boot only, so processes elsewhere can be named and not looked at.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PROC = Path("/proc")
START_TICKS = 19
"""Field of ``/proc/PID/stat`` that holds the start, counted from the state, the first behind the name."""
OUTERMOST = "pid:[4026531836]"
"""PID namespace that the kernel begins with; its number is part of the kernel's interface."""
ENDED = ("Z", "X", "x")
"""States of a process that is dead and waits for its parent to notice."""

ProcessState = Literal["lives", "ended", "unknown"]
"""State of a process as far as it can be seen from here; unknown where it runs elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessIdentity:
    """Process among all that ever ran."""

    namespace: str
    """Boot of the kernel, PID namespace and time namespace; empty where they cannot be read."""
    pid: int
    """Number in that namespace."""
    start_ticks: int
    """Kernel's clock ticks from its boot to the start of the process; 0 where they cannot be read."""

    def state(self) -> ProcessState:
        """Look if the process lives."""
        if not self.namespace or self.namespace != current_namespace():
            return "unknown"
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return "ended"
        except PermissionError:
            pass
        stat = _stat(str(self.pid))
        if stat is None:  # Another user's, which /proc may hide, or it ended at this moment.
            return "unknown"
        state, ticks = stat
        return "lives" if ticks == self.start_ticks and state not in ENDED else "ended"


def this_process() -> ProcessIdentity:
    """Return the identity of the process that calls."""
    stat = _stat("self")
    return ProcessIdentity(
        namespace=current_namespace(), pid=os.getpid(), start_ticks=stat[1] if stat else 0
    )


def current_namespace() -> str:
    """Name the namespace whose process numbers this process sees; empty where it cannot be told."""
    try:
        # Where /proc is still that of the namespace outside, its numbers are not ours.
        if os.readlink(PROC / "self") != str(os.getpid()):
            return ""
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        spaces = [os.readlink(PROC / "self/ns/pid")]
        with suppress(OSError):  # Kernels before 5.6 have no time namespaces.
            spaces.append(os.readlink(PROC / "self/ns/time"))
    except OSError:
        return ""
    return " ".join([boot, *spaces])


def sees_every_process() -> bool:
    """Tell if this process is in the PID namespace of the kernel itself, which sees those of all others."""
    return OUTERMOST in current_namespace().split()


def named_inside(pid: int) -> bool:
    """Tell if a process that can be seen here has this number in a PID namespace further in."""
    for status in PROC.glob("[0-9]*/status"):
        with suppress(OSError):
            numbers = next(
                (x for x in status.read_text().splitlines() if x.startswith("NSpid:")), ""
            )
            if str(pid) in numbers.split()[2:]:
                return True
    return False


def _stat(process: str) -> tuple[str, int] | None:
    """Read state and start of a process; None where they cannot be read."""
    try:
        # The name in parentheses may hold blanks and parentheses of its own.
        fields = (PROC / process / "stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[START_TICKS])
    except (OSError, IndexError, ValueError):
        return None

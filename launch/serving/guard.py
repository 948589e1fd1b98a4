"""Watchdog that runs a command until it ends, or until its own starter is gone.

    python -I guard.py GRACE_S SCRATCH COMMAND...

The starter holds the other end of the guard's standard input. A pipe breaks however its writer ends, by
SIGKILL too, so closing it is both the order to stop and the proof that nobody is left to give one. The
command has a process group of its own, and all of it ends; then the folder SCRATCH is removed. Standard
library only, so that the guard stands in milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from shutil import rmtree

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    """Return the exit code of the command; of one that a signal ended, 128 plus its number, as shells
    have it."""
    grace_s, scratch, command = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
    # Somebody may kill the guard itself.
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=end_with_parent
    )
    ended = os.pidfd_open(child.pid)
    ready, _, _ = select.select([sys.stdin.fileno(), ended], [], [])
    if ended not in ready:
        child.terminate()
        select.select([ended], [], [], grace_s)
    # Before the child is waited for: until then nobody else can be given its group's number.
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    code = child.wait()
    rmtree(scratch, ignore_errors=True)
    return code if code >= 0 else 128 - code


def end_with_parent() -> None:
    """Let the kernel ask this process to end when its parent does, however that happens."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())

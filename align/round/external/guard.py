"""Runs a command until it ends, or until whoever started the guard is gone, and leaves nothing of it.

    python -I guard.py GRACE_S COMMAND...

The starter holds the other end of the guard's standard input. A pipe breaks however its writer ends, by
SIGKILL too, so closing it is both the order to stop and the proof that nobody is left to give one. The
guard adopts every orphan below it, so a daemon with a session of its own is ended as well. It ends as the
command did, by the same code or signal. Standard library only: it is run by its path, in milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LIBC = ctypes.CDLL(None, use_errno=True)
LOOK_S = 0.05
"""Seconds between two looks at what is left."""
NOT_STARTED = 126
"""Exit code for a command that cannot be executed, as shells have it."""


def main() -> int:
    """Run the command; return its exit code, or end by the signal that it ended by."""
    starter = os.getppid()
    grace_s, command = float(sys.argv[1]), sys.argv[2:]
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)
    # A handler, since a signal that is ignored would be ignored by the command, too.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    try:
        # Somebody may kill the guard itself.
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=end_with_guard)
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", file=sys.stderr)
        return NOT_STARTED
    wait(os.pidfd_open(child.pid), starter)
    status = end_all(child.pid, grace_s)
    if os.WIFEXITED(status):
        return os.WEXITSTATUS(status)
    ending = os.WTERMSIG(status)
    with suppress(OSError):  # No handler can be set for SIGKILL, and none is needed.
        signal.signal(ending, signal.SIG_DFL)
    os.kill(os.getpid(), ending)
    return 128 + ending


def end_with_guard() -> None:
    """Ask the kernel to kill this process when its parent ends."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def wait(ended: int, starter: int) -> None:
    """Wait until the command ends, or the starter closes its pipe or is gone."""
    poll = select.poll()
    for descriptor in (ended, sys.stdin.fileno()):
        poll.register(descriptor, select.POLLIN)
    # A forked copy of the starter may hold the pipe open.
    while os.getppid() == starter and not poll.poll(1000):
        pass


def end_all(command: int, grace_s: float) -> int:
    """End all processes below this one by a signal, later by SIGKILL; return how the command ended."""
    status, until, number = 0, time.monotonic() + grace_s, signal.SIGTERM
    signalled: set[int] = set()
    while True:
        try:
            reaped, reported = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if reaped == command:
            status = reported
        if reaped:
            continue
        if time.monotonic() >= until:
            number = signal.SIGKILL
            signalled.clear()
        fresh = [pid for pid in below(os.getpid()) if pid not in signalled]
        signalled.update(fresh)
        for pid in fresh:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(LOOK_S)


def below(parent: int) -> list[int]:
    """Return the children of a process and all that are below them."""
    try:
        with open(f"/proc/{parent}/task/{parent}/children") as file:
            children = [int(word) for word in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [*children, *(pid for child in children for pid in below(child))]


if __name__ == "__main__":
    sys.exit(main())

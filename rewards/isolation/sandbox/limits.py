"""Limits of a worker process: environment, memory, files; and its end together with its keeper."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

SEEN = (
    "HF_HUB_OFFLINE",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LD_LIBRARY_PATH",
    "OMP_NUM_THREADS",
    "PATH",
    "PYTHONHASHSEED",
    "TZ",
)
"""The variables a worker gets from this process. No token is among them."""

LARGEST_FILE = 2**30
"""Bytes a worker may write into one file."""
MOST_PROCESSES = 256
"""Processes and threads of a sandbox."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
LOOKING = (19, 21, 38, 39)
"""Capabilities that look into other processes whatever holds these apart: SYS_PTRACE, SYS_ADMIN, PERFMON,
BPF."""

LIBC = ctypes.CDLL(None, use_errno=True)


def environment(scratch: Path, granted: Iterable[str] = ()) -> dict[str, str]:
    """Return the whole environment of a worker whose only folder is ``scratch``."""
    folders = [str(Path(entry or ".").resolve()) for entry in sys.path]
    return {
        **{name: os.environ[name] for name in (*SEEN, *granted) if name in os.environ},
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(f for f in folders if os.path.exists(f))),
    }


def checked(result: int, call: str) -> int:
    """Return the result of a call of libc; raise `OSError` for a negative one."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def prctl(option: int, value: int) -> None:
    """Set one property of this process."""
    checked(LIBC.prctl(option, value, 0, 0, 0), f"prctl {option}")


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends, daemons included."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent's main thread ends."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os.kill(os.getpid(), signal.SIGKILL)


def forgo_privileges() -> None:
    """Give up new rights: no program started from here gains any, whatever its file says."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def change_user(user: int, group: int) -> None:
    """Continue as another user, in that one group. Needs root."""
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)


def forgo_capabilities(numbers: Iterable[int] | None = None) -> None:
    """Give up capabilities, here and in programs that are started; None: all of them."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # The first 32 effective, permitted and inheritable ones, then the others.
    words = (ctypes.c_uint32 * 6)()
    if numbers is not None:
        checked(LIBC.capget(ctypes.byref(header), ctypes.byref(words)), "capget")
        for number in numbers:
            for kind in range(3):
                words[3 * (number // 32) + kind] &= ~(1 << number % 32)
    checked(LIBC.capset(ctypes.byref(header), ctypes.byref(words)), "capset")


def limit(memory_bytes: int | None, processes: int | None = None) -> None:
    """Bound this process and those it starts. ``processes`` counts a whole user: sandboxes only."""
    _bound(resource.RLIMIT_CORE, 0)
    _bound(resource.RLIMIT_FSIZE, LARGEST_FILE)
    if memory_bytes is not None:
        _bound(resource.RLIMIT_AS, memory_bytes)
    if processes is not None:
        _bound(resource.RLIMIT_NPROC, processes)


def end_first() -> None:
    """Let the kernel end this process rather than the learner when memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800")


def _bound(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))

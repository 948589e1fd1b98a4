"""Files of one server: a log that stays, and a folder that goes with it. No other server writes there.

Whoever can write to the log holds its lock: this process, and the server's own processes, which inherit it.
So the lock is free when all of them have ended, however they did, and it says so between machines and
containers too, where the number of a process says nothing.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

KEPT_LOGS = 20
"""Number of logs that are kept of servers that have ended; older ones are removed."""
SCRATCH = "scratch-"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerFiles:
    """Files of one server."""

    log: Path
    output: int
    """Descriptor of the log, with its lock; the caller of `claim` closes it."""
    scratch: Path
    """Folder for what the server needs only while it runs, such as merged weights."""


def claim(folder: Path, name: str) -> ServerFiles:
    """Claim new files for a server.

    Args:
        folder: ``serving`` in the store; made when it is not there.
        name: beginning of the log's name; the time follows.
    """
    folder.mkdir(exist_ok=True)
    begun = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    output, log = tempfile.mkstemp(prefix=f"{name}-{begun}-", suffix=".log", dir=folder)
    try:
        with suppress(OSError):  # Some file systems have no locks; nothing is cleared there.
            fcntl.flock(output, fcntl.LOCK_EX)
        scratch = folder / f"{SCRATCH}{Path(log).stem}"
        scratch.mkdir()
    except BaseException:
        os.close(output)
        raise
    return ServerFiles(log=Path(log), output=output, scratch=scratch)


def clear(folder: Path) -> None:
    """Remove the scratch folders of servers that have ended, and their logs but for the latest."""
    for scratch in folder.glob(f"{SCRATCH}*"):
        if not _in_use(folder / f"{scratch.name.removeprefix(SCRATCH)}.log"):
            rmtree(scratch, ignore_errors=True)
    logs = []
    for log in folder.glob("*.log"):
        with suppress(FileNotFoundError):  # Somebody else clears too.
            logs.append((log.stat().st_mtime_ns, log))
    for _, log in sorted(logs)[:-KEPT_LOGS]:
        if not _in_use(log):
            log.unlink(missing_ok=True)


def _in_use(log: Path) -> bool:
    try:
        descriptor = os.open(log, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False

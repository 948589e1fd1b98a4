"""Sweeper of a local cluster: a process that ends what Ray leaves when its driver is gone, however it went.

Ray's processes end with their driver, unless it or they were killed or stopped: an agent then waits for a
raylet that is gone, and a stopped process for ever. All of them carry a mark in their environment. The
driver holds the other end of the sweeper's standard input, which breaks when it ends. The sweeper is run by
its path and needs the standard library only.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

MARK = "KEEL_CLUSTER"
"""Variable that names the cluster which a process belongs to."""
GRACE_S = 3.0
"""Seconds that Ray's processes have to end by themselves."""
LOOK_S = 0.1
"""Seconds between two looks at what is left."""
GIVE_UP_S = 120.0
"""Seconds after which a process that not even SIGKILL ends, as one that waits for a disk, is left alone."""
SWEEP_S = 15.0
"""Seconds that a driver waits for its sweeper at the end."""


@contextmanager
def swept(local: bool) -> Iterator[dict[str, str]]:
    """Yield variables for a cluster's processes; those that carry them end with the block or the driver.

    Args:
        local: the cluster is this process's own; of any other one nothing is marked and nothing is ended.
    """
    if not local:
        yield {}
        return
    name = uuid.uuid4().hex
    # -I: neither the working folder nor PYTHONPATH may slip a module into the sweeper.
    command = [sys.executable, "-I", __file__, name]
    # In a session of its own: it has to outlive a signal to the driver's group.
    sweeper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert sweeper.stdin is not None
    try:
        yield {MARK: name}
    finally:
        sweeper.stdin.close()
        try:
            sweeper.wait(SWEEP_S)
        except subprocess.TimeoutExpired:
            sweeper.kill()
            sweeper.wait()


def marked(name: str) -> list[int]:
    """List the processes that were started for a cluster and live."""
    mark = f"{MARK}={name}".encode()
    pids = []
    for entry in os.listdir("/proc"):
        with suppress(OSError):
            if entry.isdigit() and mark in _read(entry, "environ").split(b"\0") and _lives(entry):
                pids.append(int(entry))
    return pids


def _read(process: str, file: str) -> bytes:
    with open(f"/proc/{process}/{file}", "rb") as stream:
        return stream.read()


def _lives(process: str) -> bool:
    return _read(process, "stat").rpartition(b")")[2].split()[0] not in (b"Z", b"X")


def main() -> None:
    """Wait for the driver's end, then for that of its cluster; kill what is still there."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    starter, poll = os.getppid(), select.poll()
    poll.register(sys.stdin.fileno(), select.POLLIN)
    # A forked copy of the driver may hold the pipe open.
    while os.getppid() == starter and not poll.poll(1000):
        pass
    began = time.monotonic()
    while (pids := marked(sys.argv[1])) and time.monotonic() - began < GIVE_UP_S:
        if time.monotonic() - began >= GRACE_S:
            for pid in pids:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(LOOK_S)


if __name__ == "__main__":
    main()

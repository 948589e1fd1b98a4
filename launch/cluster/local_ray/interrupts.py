"""Interrupts while Ray starts, which its compiled code would otherwise hold up.

Python runs a signal's handler in the main thread, between two steps of Python. Ray's client waits for its
server in one long step. A thread of its own therefore learns of the signal from the operating system, gives
the main thread a moment, ends the processes that are waited for, and at last this process.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

GRACE_S = 5.0
"""Seconds that the main thread has to react to a signal by itself, and then once more."""
ENDING = frozenset({signal.SIGINT, signal.SIGTERM})
"""Signals that end the start. The alarm of our own deadline is not one: once its server is gone, a client
would end the whole process."""


@contextmanager
def heeding(
    end_processes: Callable[[], object],
    *,
    grace_s: float = GRACE_S,
    leave: Callable[[int], object] = os._exit,
) -> Iterator[None]:
    """Make the block end soon after a signal; do nothing off the main thread.

    Args:
        end_processes: ends what the block waits for; called from another thread.
        leave: ends this process with an exit code.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(
        target=_watch, args=(reader, end_processes, grace_s, leave), daemon=True
    )
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()
        watcher.join()
        reader.close()


def _watch(
    reader: socket.socket,
    end_processes: Callable[[], object],
    grace_s: float,
    leave: Callable[[int], object],
) -> None:
    """Wait for signals until the other end is closed; end what the block waits for, then this process."""
    while received := reader.recv(64):
        if not (numbers := ENDING.intersection(received)):
            continue
        if _ends_within(reader, grace_s):
            return
        end_processes()
        if _ends_within(reader, grace_s):
            return
        print("interrupted while Ray was starting", file=sys.stderr, flush=True)
        leave(128 + min(numbers))


def _ends_within(reader: socket.socket, seconds: float) -> bool:
    """Tell if the block ends within ``seconds``; other signals meanwhile change nothing."""
    reader.settimeout(seconds)
    try:
        while reader.recv(64):
            pass
        return True
    except TimeoutError:
        return False
    finally:
        reader.settimeout(None)

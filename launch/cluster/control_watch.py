"""Watch over Ray's control service (GCS): it names a silent one, and ends a run in which it stays silent.

Calls between actors do without the service, so a run goes on while it is stopped and after it came back.
Whatever starts or is placed waits for it without a word, and some of Ray's own calls wait for ever.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rollouts.errors import RunError
from rollouts.machine.silence import Silence
from rollouts.machine.stopping import end_run

LOOK_S = 2.0
"""Seconds between two looks at the service, and those that an answer may take."""
GRACE_S = 60.0
"""Seconds that a run which is asked to end has for it, before its process is ended."""
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""First bytes of an HTTP/2 client, with empty settings; a gRPC server answers them with its own."""


@dataclass(kw_only=True, slots=True)
class ControlWatch:
    """Looks at the control service of a cluster from a thread of its own.

    It counts looks and not the clock: a driver that was stopped itself has not waited for anybody.
    """

    limit_s: float
    """Seconds without an answer after which the run ends."""
    silence_s: float
    """Seconds without an answer after which the service is named."""
    note: Callable[[str], None]
    look_s: float = LOOK_S
    grace_s: float = GRACE_S
    end: Callable[[RunError], bool] = end_run
    leave: Callable[[int], object] = os._exit
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def begin(self, address: str) -> None:
        """Watch the service at ``host:port`` from now on."""
        self._thread = threading.Thread(target=self._watch, args=(address,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, address: str) -> None:
        looks_s, is_named = 0.0, False
        silence = Silence(after_s=min(self.silence_s, self.limit_s / 2), clock=lambda: looks_s)
        while not self._over.wait(self.look_s):
            looks_s += self.look_s
            if answers(address, self.look_s):
                if is_named:
                    self.note(f"Ray's control service at {address} answers again")
                is_named = False
                silence.restart()
                continue
            looks_s += self.look_s
            if silence.lasted_s >= self.limit_s:
                self._end(address, silence.lasted_s)
                return
            if silence.is_due():
                is_named = True
                self.note(
                    f"Ray's control service (GCS) at {address} has not answered for "
                    f"{silence.lasted_s:.0f} s: whatever starts waits for it, and the run stops after "
                    f"{self.limit_s:g} s"
                )

    def _end(self, address: str, seconds: float) -> None:
        """End the run in order, and its process where that takes too long."""
        error = RunError(
            f"Ray's control service (GCS) at {address} has not answered for {seconds:.0f} s",
            where="waits.control_s",
            cause="its process is stopped or dead, or its machine cannot be reached",
            remedy="run again: the round goes on from its checkpoint; Ray's logs have gcs_server.out",
        )
        if self.end(error) and not self._over.wait(self.grace_s):
            print(f"error: {error}", file=sys.stderr, flush=True)
            self.leave(1)


@contextmanager
def watching(watch: ControlWatch) -> Iterator[ControlWatch]:
    """Stop a watch with the block, which has the cluster's own context within it."""
    try:
        yield watch
    finally:
        watch.close()


def answers(address: str, timeout_s: float) -> bool:
    """Tell if a gRPC server at ``host:port`` answers, if only by hanging up.

    The system accepts connections for a process that is stopped, so an open port says nothing.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout_s) as connection:
            connection.sendall(GREETING)
            connection.recv(1)
    except OSError:
        return False
    return True

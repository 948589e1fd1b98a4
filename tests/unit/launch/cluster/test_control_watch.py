"""The watch over Ray's control service: sockets that answer, hang up, are silent or are closed."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from launch.cluster.control_watch import GREETING, ControlWatch, answers, watching
from rollouts.errors import RunError
from rollouts.machine.stopping import end_run, ended_by_sigterm, signal_of
from tests.patience import patient


@contextmanager
def service(reply: bytes | None, silent_for: int = 0) -> Iterator[str]:
    """A server that sends ``reply`` to each greeting, after the first ones; None: it accepts nobody."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if reply is not None:
            threading.Thread(target=serve, args=(server, reply, silent_for), daemon=True).start()
        yield address


def serve(server: socket.socket, reply: bytes, silent_for: int) -> None:
    waiting = []
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        if silent_for:
            silent_for -= 1
            waiting.append(connection)
            continue
        with connection:
            if connection.recv(len(GREETING)) == GREETING:
                connection.sendall(reply)


def watch_of(notes: list[str], ends: list[RunError], **options: float) -> ControlWatch:
    return ControlWatch(
        limit_s=1.0, silence_s=0.2, note=notes.append, look_s=0.05, grace_s=patient(20),
        end=lambda error: not ends.append(error), **options,
    )  # fmt: skip


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + patient(20)
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_a_stopped_service_accepts_connections_and_does_not_answer() -> None:
    with service(b"settings") as address:
        assert answers(address, patient(5))
    with service(b"") as address:  # It hangs up, as a server that speaks TLS does.
        assert answers(address, patient(5))
    with service(None) as address:
        assert not answers(address, 0.2)
    assert not answers(address, 0.2)  # Nobody listens there any more.


def test_a_service_that_comes_back_is_named_twice_and_ends_nothing() -> None:
    notes: list[str] = []
    ends: list[RunError] = []
    with service(b"settings", silent_for=4) as address, watching(watch_of(notes, ends)) as watch:
        watch.begin(address)
        until(lambda: len(notes) == 2)
    assert "has not answered for 0 s" in notes[0] and "stops after 1 s" in notes[0]
    assert notes[1] == f"Ray's control service at {address} answers again"
    assert not ends


def test_a_service_that_stays_silent_ends_the_run() -> None:
    notes: list[str] = []
    ends: list[RunError] = []
    with service(None) as address, watching(watch_of(notes, ends)) as watch:
        watch.begin(address)
        until(lambda: ends)
    assert f"Ray's control service (GCS) at {address} has not answered for 1 s" in str(ends[0])
    assert "run again" in str(ends[0])
    assert len(notes) == 2  # After .2 s, and after twice as long.


def test_a_run_that_does_not_end_in_time_is_ended(capsys) -> None:
    left: list[int] = []
    watch = ControlWatch(
        limit_s=0.1, silence_s=1.0, note=lambda _: None, look_s=0.05, grace_s=0.05,
        end=lambda error: True, leave=lambda code: left.append(code),
    )  # fmt: skip
    with service(None) as address, watching(watch):
        watch.begin(address)
        until(lambda: left)
    assert left == [1]
    assert "Ray's control service (GCS)" in capsys.readouterr().err


def test_a_run_ends_by_an_error_of_another_thread() -> None:
    error = RunError("the service is silent")
    assert not end_run(error)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunError, match="the service is silent"), ended_by_sigterm():
        thread = threading.Thread(target=end_run, args=(error,))
        thread.start()
        try:
            time.sleep(patient(20))
        except KeyboardInterrupt as interrupt:
            assert signal_of(interrupt) is None and str(interrupt) == "the service is silent"
            raise
    assert signal.getsignal(signal.SIGTERM) is before

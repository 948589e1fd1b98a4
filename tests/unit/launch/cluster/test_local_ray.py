"""A start of Ray that is slow is tried again with more time; one that is refused is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from launch.cluster.local_ray import start
from launch.cluster.local_ray.folder import (
    SESSION,
    SHORT_FOLDER,
    SOCKET_LIMIT,
    ray_folder,
    sessions_folder,
)
from launch.cluster.local_ray.interrupts import heeding
from launch.cluster.local_ray.start import (
    end_processes,
    inner_limits,
    start_patiently,
    telling_line,
)
from rollouts.errors import RunError
from tests.patience import patient

PORT_WAIT = "RAY_gcs_server_port_wait_time_s"


class Slow:
    """A start that needs some seconds of a clock of its own; ``fails``: it is refused at once."""

    def __init__(
        self, needs_s: float, monkeypatch: pytest.MonkeyPatch, fails: bool = False
    ) -> None:
        self.needs_s, self.fails, self.clock = needs_s, fails, 0.0
        self.limits: list[tuple[float, Mapping[str, int]]] = []
        self.cleaned = 0
        monkeypatch.setattr(time, "monotonic", lambda: self.clock)
        monkeypatch.setattr(start, "end_processes", self._clean)

    def _clean(self, known: set[int]) -> None:
        self.cleaned += 1

    def __call__(self, limit_s: float, inner: Mapping[str, int]) -> Mapping[str, object]:
        self.limits.append((limit_s, inner))
        if self.fails:
            raise RunError("Ray did not start: OSError: no", remedy="run `keel doctor`")
        self.clock += min(self.needs_s, limit_s)
        if self.needs_s > limit_s:
            raise RunError(f"Ray was not ready after {limit_s:g} s", cause="short of CPU")
        return {"gcs_address": "here"}


def test_a_busy_machine_gets_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, notes = Slow(200.0, monkeypatch), []
    assert start_patiently(slow, 60.0, note=notes.append) == {"gcs_address": "here"}
    assert [limit for limit, _ in slow.limits] == [60.0, 120.0, 240.0]
    assert [inner["agent_register_timeout_ms"] for _, inner in slow.limits] == [
        60_000, 120_000, 240_000,
    ]  # fmt: skip
    assert slow.cleaned == 2
    assert notes[0].startswith("Ray was not ready after 60 s (load average ")
    assert notes[0].endswith("trying again with 120 s")


def test_in_the_end_the_load_and_a_line_of_the_log_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = Slow(1e9, monkeypatch)

    def begin(limit_s: float, inner: Mapping[str, int]) -> Mapping[str, object]:
        logs = tmp_path / f"session_2026-01-01_{limit_s:g}" / "logs"
        logs.mkdir(parents=True)
        text = "[2026 I 1] fine\n[2026 E 1] Failed to register the agent\n"
        (logs / "raylet.out").write_text(text)
        return slow(limit_s, inner)

    with pytest.raises(RunError) as caught:
        start_patiently(begin, 60.0, logs=tmp_path)
    told = str(caught.value)
    assert "Ray was not ready after 240 s in 3 attempts" in told
    assert "short of CPU; load average " in told
    assert "Ray's log says: [2026 E 1] Failed to register the agent" in told
    assert slow.cleaned == 3


def test_what_is_refused_at_once_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Slow(0.0, monkeypatch, fails=True)
    with pytest.raises(RunError, match="Ray did not start: OSError"):
        start_patiently(refused, 60.0)
    assert (len(refused.limits), refused.cleaned) == (1, 1)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_cleans_up_and_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]
) -> None:
    slow = Slow(0.0, monkeypatch)

    def interrupted(limit_s: float, inner: Mapping[str, int]) -> Mapping[str, object]:
        raise interrupt

    with pytest.raises(interrupt):
        start_patiently(interrupted, 60.0)
    assert slow.cleaned == 1


def test_limits_that_the_environment_sets_stay() -> None:
    assert inner_limits(60.0, {"RAY_agent_register_timeout_ms": "5"}).keys() == {
        "raylet_start_wait_time_s", "worker_register_timeout_seconds",
    }  # fmt: skip


def test_ray_waits_as_long_as_the_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """30 s are written into `Node.__init__`, and 30 more into the wait for its port."""
    from ray._private import services

    calls = []

    def late(address: str, node: str) -> dict[str, str]:
        calls.append(address)
        if len(calls) < 3:
            raise RuntimeError("not yet")
        return {"node": node}

    monkeypatch.setattr(services, "get_node", late)
    monkeypatch.setattr(start, "_raylet_lives", lambda: True)
    monkeypatch.delenv(PORT_WAIT, raising=False)
    with start.patience(90.0):
        assert services.get_node("here", "1") == {"node": "1"}
        assert os.environ[PORT_WAIT] == "30"
    assert PORT_WAIT not in os.environ
    assert services.get_node is late
    with start.patience(480.0):
        assert os.environ[PORT_WAIT] == "120"
    calls.clear()
    monkeypatch.setattr(start, "_raylet_lives", lambda: False)
    with start.patience(90.0), pytest.raises(RuntimeError, match="not yet"):
        services.get_node("here", "1")  # A raylet that is gone announces nothing.
    assert len(calls) == 1


def test_only_rays_own_processes_are_ended(tmp_path: Path) -> None:
    code = "import time; time.sleep(60)"
    raylet = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "ray" / "raylet")])
    known = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "ray" / "other")])
    foreign = subprocess.Popen([sys.executable, "-c", code])
    try:
        end_processes({known.pid})
        assert not psutil.pid_exists(raylet.pid) or raylet.poll() is not None
        assert known.poll() is None and foreign.poll() is None
    finally:
        for process in (raylet, known, foreign):
            process.kill()
            process.wait()


def test_the_log_line_is_of_this_start(tmp_path: Path) -> None:
    assert telling_line(tmp_path, since=0.0) is None
    for name, age in (("session_2026-01-01", 100.0), ("session_2026-01-02", 0.0)):
        logs = tmp_path / name / "logs"
        logs.mkdir(parents=True)
        (logs / "gcs_server.out").write_text(f"[2026 I 1] fine\n[2026 E 1] failed in {name}\n")
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    told = telling_line(tmp_path, since=time.time() - 50.0)
    assert told is not None
    assert told.startswith("[2026 E 1] failed in session_2026-01-02 (")
    assert telling_line(tmp_path, since=time.time() + 50.0) is None


@pytest.mark.parametrize(
    "length", range(SOCKET_LIMIT - len(SESSION) - 8, SOCKET_LIMIT - len(SESSION) + 3)
)
def test_sockets_have_short_paths(length: int) -> None:
    folder = "/" + "t" * (length - 1)
    chosen = ray_folder({"TMPDIR": folder})
    ray = Path(folder) / "ray" if chosen is None else chosen
    assert len(str(ray / SESSION)) <= SOCKET_LIMIT
    assert (chosen is None) == (len(f"{folder}/ray/{SESSION}") <= SOCKET_LIMIT)
    assert sessions_folder({"TMPDIR": folder}) == ray


def test_a_folder_that_was_chosen_for_ray_is_not_replaced_in_silence() -> None:
    with pytest.raises(RunError, match="RAY_TMPDIR"):
        ray_folder({"RAY_TMPDIR": "/" + "t" * 80})
    assert ray_folder({"RAY_TMPDIR": "/tmp", "TMPDIR": "/" + "t" * 80}) is None
    assert ray_folder({"TMPDIR": "/" + "t" * 80}) == SHORT_FOLDER


DEAF = """
import signal, sys, threading, time
from launch.cluster.local_ray.interrupts import heeding

ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: None)

def deaf():
    # One long step of compiled code, as far as signals are concerned: it lets none through.
    import ctypes
    libc = ctypes.CDLL(None)
    print("deaf", flush=True)
    while not (ended.is_set() and {heeds}):
        libc.usleep(100_000)

with heeding(ended.set, grace_s=0.2):
    while True:
        try:
            deaf()
            break
        except KeyboardInterrupt:
            continue  # A wait that goes on whatever arrives.
print("ended", ended.is_set(), flush=True)
"""


@pytest.mark.parametrize(
    ("number", "heeds", "code", "said"),
    [
        (signal.SIGINT, True, 0, "ended True"),
        (signal.SIGTERM, True, 0, "ended True"),
        (signal.SIGINT, False, 130, ""),
    ],
)
def test_a_start_that_hears_nothing_is_ended(
    number: signal.Signals, heeds: bool, code: int, said: str
) -> None:
    """The processes it waits for go first, and where that does not help the process itself."""
    process = subprocess.Popen(
        [sys.executable, "-c", DEAF.replace("{heeds}", str(heeds))],
        cwd=Path(__file__).resolve().parents[4],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "deaf\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=patient(60))
    assert process.returncode == code, err
    assert (said or "deaf") in out.splitlines()


def test_a_block_that_ends_by_itself_is_left_alone() -> None:
    told: list[int] = []
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    with heeding(lambda: told.append(1), grace_s=5.0, leave=told.append):
        pass
    assert told == []
    assert signal.set_wakeup_fd(before) == before

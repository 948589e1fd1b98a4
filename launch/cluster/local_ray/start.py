"""Start of Ray on this machine: retried with more time if the machine is busy, cleaned up in between.

Several limits of half a minute are written into Ray's start: on a loaded machine its processes need longer
to find each other. All of them are set to the time that the attempt has. An attempt that failed leaves
processes behind that Ray does not know of any more; they are ended here, before the next and at the end.
"""

from __future__ import annotations

import gc
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from launch.cluster.local_ray.interrupts import heeding
from rollouts.errors import RunError

GROWTH = (1, 2, 4)
"""Time limits of the attempts, in units of the first one's."""
SLOW_S = 20.0
"""Seconds below which a failed attempt counts as refused, not slow; it is not repeated."""
PORT_WAIT_S, PORT_SHARE = 30, 0.25
"""Seconds that Ray's server has to open its port, at the least, and as a share of the attempt. Ray lets no
thread of this process run meanwhile, so that not even an interrupt is heeded."""
END_S = 5.0
"""Seconds that Ray's processes have to end when they are asked to."""

INNER_LIMITS = {
    "agent_register_timeout_ms": 1000,
    "raylet_start_wait_time_s": 1,
    "worker_register_timeout_seconds": 1,
}
"""Ray's own limits, with their units per second; a variable ``RAY_<name>`` overrides one."""
LOGS = ("raylet.out", "raylet.err", "gcs_server.out", "gcs_server.err", "dashboard_agent.log")
"""Log files in which Ray says why it did not start, the most informative first."""
TELLING = re.compile(r"\] ?\(?[EF]\b|^[EF]\d{4} | E \d+ |[Ee]rror|[Ff]ailed|[Tt]imed out")

Info = Mapping[str, object]
Note = Callable[[str], None]


def start_patiently(
    init: Callable[[float, Mapping[str, int]], Info],
    first_s: float,
    *,
    note: Note = lambda _: None,
    logs: Path | None = None,
) -> Info:
    """Call ``init``, again with a longer limit if it was too slow, and return its result.

    Args:
        init: starts Ray within so many seconds, with these limits in its ``_system_config``; raises
            `RunError` where it does not.
        first_s: seconds of the first attempt.
        note: told of every further attempt.
        logs: Ray's folder of sessions; None: not looked at.

    Raises:
        RunError: no attempt succeeded; the load of the machine and a line of Ray's logs are named.
    """
    existing = {process.pid for process in _descendants()}
    for number, factor in enumerate(GROWTH, start=1):
        limit_s, began, wall = first_s * factor, time.monotonic(), time.time()
        try:
            with patience(limit_s), heeding(partial(kill_processes, existing)):
                return init(limit_s, inner_limits(limit_s, os.environ))
        except RunError as error:
            end_processes(existing)
            took_s = time.monotonic() - began
            if number == len(GROWTH) or took_s < min(SLOW_S, limit_s):
                raise _gave_up(error, number, logs, wall) from error
            again = f"trying again with {first_s * GROWTH[number]:g} s"
            note(f"Ray was not ready after {took_s:.0f} s ({load_words()}); {again}")
        except BaseException:
            end_processes(existing)
            raise
    raise AssertionError("the last attempt returns or raises")


def inner_limits(limit_s: float, environ: Mapping[str, str]) -> dict[str, int]:
    """Return Ray's own limits for an attempt, without those that the environment sets.

    >>> inner_limits(60.0, {"RAY_raylet_start_wait_time_s": "5"})
    {'agent_register_timeout_ms': 60000, 'worker_register_timeout_seconds': 60}
    """
    return {
        name: max(1, round(limit_s)) * units
        for name, units in INNER_LIMITS.items()
        if f"RAY_{name}" not in environ
    }


@contextmanager
def patience(limit_s: float) -> Iterator[None]:
    """Make Ray wait ``limit_s`` for its own processes where its code says 30 s."""
    from ray._private import services

    variable = "RAY_gcs_server_port_wait_time_s"
    original, stated = services.get_node, os.environ.get(variable)

    def get_node(*arguments: Any) -> Any:
        until = time.monotonic() + limit_s
        while True:
            try:
                return original(*arguments)
            except RuntimeError:
                if time.monotonic() >= until or not _raylet_lives():
                    raise
            time.sleep(0.2)

    services.get_node = get_node
    os.environ[variable] = stated or str(max(PORT_WAIT_S, round(limit_s * PORT_SHARE)))
    try:
        yield
    finally:
        services.get_node = original
        if stated is None:
            os.environ.pop(variable, None)


def end_processes(known: set[int]) -> None:
    """End what a failed attempt started: Ray's processes below this one that are not in ``known``."""
    import ray

    with suppress(Exception):
        ray.shutdown()
    # A client of a server that is gone ends this process after a minute, if it lives on.
    gc.collect()
    kill_processes(known)


def kill_processes(known: set[int]) -> None:
    """Kill Ray's processes below this one that are not in ``known``; callable from any thread."""
    fresh = [p for p in _descendants() if p.pid not in known and _is_ray(p)]
    for process in fresh:
        with suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(fresh, timeout=END_S)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=END_S)


def load_words() -> str:
    """Say how busy the machine is."""
    cpus = len(os.sched_getaffinity(0))
    return f"load average {os.getloadavg()[0]:.1f} on {cpus} CPU{'s' if cpus > 1 else ''}"


def telling_line(sessions: Path, since: float) -> str | None:
    """Return the line of Ray's logs that says most about a failed start, with its file.

    Args:
        sessions: the folder that holds Ray's sessions.
        since: seconds since the epoch; sessions that were begun earlier are others'.
    """
    # The clock of files is a little behind.
    begun = [f for f in sessions.glob("session_2*") if f.is_dir() and f.stat().st_mtime > since - 1]
    for folder in sorted(begun, key=lambda f: f.stat().st_mtime, reverse=True):
        for file in (folder / "logs" / name for name in LOGS):
            lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
            if telling := [line.strip() for line in lines if TELLING.search(line)]:
                return f"{telling[-1][:300]} ({file})"
    return f"nothing telling in {begun[-1] / 'logs'}" if begun else None


def _gave_up(error: RunError, attempts: int, logs: Path | None, since: float) -> RunError:
    tried = f" in {attempts} attempts" if attempts > 1 else ""
    line = telling_line(logs, since) if logs is not None else None
    causes = [error.cause, load_words(), line and f"Ray's log says: {line}"]
    return RunError(
        f"{error.what}{tried}",
        where=error.where,
        cause="; ".join(part for part in causes if part),
        remedy=error.remedy,
    )


def _descendants() -> list[psutil.Process]:
    try:
        return list(psutil.Process().children(recursive=True))
    except psutil.Error:
        return []


def _is_ray(process: psutil.Process) -> bool:
    try:
        return any("/ray/" in word or word.startswith("ray::") for word in process.cmdline())
    except psutil.Error:
        return False


def _raylet_lives() -> bool:
    """Tell if a raylet below this process is alive and can still announce itself."""
    with suppress(psutil.Error):
        return any("raylet" in process.name() for process in _descendants())
    return False

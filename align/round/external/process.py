"""Commands under a watchdog: with a small environment, a deadline, and one end for all.

Whatever ends the wait (its exit, the deadline, an interrupt) ends everything that it started. Where this
process is killed, so that it can end nothing, the watchdog does: see `rollouts.machine.watchdog`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rewards.isolation.sandbox.limits import SEEN
from rollouts.errors import RunError
from rollouts.machine.watchdog import NOT_STARTED, watched

ALSO_SEEN = (
    "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_CACHE", "HOME", "LOGNAME",
    "ROCR_VISIBLE_DEVICES", "TMPDIR", "USER", "VIRTUAL_ENV", "XDG_CACHE_HOME",
)  # fmt: skip
"""Variables that a trainer needs and a reward does not: its caches, devices and Python environment."""
LOOK_S = 0.2
"""Seconds between two looks at the command."""
BEAT_EVERY_S = 60.0
"""Seconds between two signs of life."""
GRACE_S = 10.0
"""Seconds to end in order, from the first signal to the last."""
END_S = 5.0
"""Seconds that the watchdog may take beyond that."""
TAIL = 20
"""Lines of the output that an error shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """Program and arguments, and what it may see."""

    words: Sequence[str]
    folder: Path
    """Current folder."""
    variables: Mapping[str, str]
    """Variables that Keel sets."""
    granted: Iterable[str] = ()
    """Names of variables of this process that it may see, too."""
    log: Path
    """File of what it prints."""
    deadline_s: float

    def environment(self) -> dict[str, str]:
        """Return all variables of the command."""
        names = (*SEEN, *ALSO_SEEN, *self.granted)
        inherited = {name: os.environ[name] for name in names if name in os.environ}
        return {**inherited, **self.variables}


def run_command(command: Command, beat: Callable[[], None] = lambda: None) -> None:
    """Run a command to its end.

    Args:
        beat: called once in a while, as a sign of life.

    Raises:
        RunError: it could not be started, ended with another code than 0, or took too long.
    """
    command.log.parent.mkdir(parents=True, exist_ok=True)
    with command.log.open("wb") as log:
        process = subprocess.Popen(
            watched(command.words, GRACE_S, at_death=signal.SIGKILL),
            cwd=command.folder,
            env=command.environment(),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(process, command, beat)
        finally:
            end(process)
    code = process.returncode
    if code != 0:
        ending = f"ended with exit code {code}"
        if code == NOT_STARTED:
            ending = "cannot be started"
        elif code < 0:
            ending = f"was ended by {signal.Signals(-code).name}"
        raise RunError(
            f"the command {command.words[0]!r} {ending}",
            where=str(command.log),
            cause=_tail(command.log),
            remedy="mend it; the round begins anew with the next keel run",
        )


def _wait(process: subprocess.Popen[bytes], command: Command, beat: Callable[[], None]) -> None:
    started = beaten = time.monotonic()
    while process.poll() is None:
        now = time.monotonic()
        if now - started > command.deadline_s:
            raise RunError(
                f"the command {command.words[0]!r} took longer than {command.deadline_s:g} s and was ended",
                where=str(command.log),
                cause=_tail(command.log),
                remedy="raise algorithm.deadline_s, or give it less to do",
            )
        if now - beaten >= BEAT_EVERY_S:
            beat()
            beaten = now
        time.sleep(LOOK_S)


def end(process: subprocess.Popen[bytes]) -> None:
    """End all that is left, by way of the watchdog, and wait for it."""
    assert process.stdin is not None, "the pipe to the watchdog"
    process.stdin.close()
    try:
        process.wait(GRACE_S + END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):  # A watchdog that was killed itself leaves its group.
        os.killpg(process.pid, signal.SIGKILL)


def _tail(log: Path) -> str | None:
    lines = log.read_bytes()[-(1 << 14) :].decode(errors="replace").strip().splitlines()
    return "it printed last:\n    " + "\n    ".join(lines[-TAIL:]) if lines else None

"""The harness's side: a candidate's process, and stand-ins for what it defined.

    with Candidate("def f(x): return x + 1", limits=CandidateLimits()) as candidate:
        candidate.functions["f"](1)        # 2, computed over there

Every question has a random number that its answer must repeat, so what the candidate writes unasked
is not taken for an answer. The process is a session of its own in an empty folder, without our
environment, and all of its group is killed at the end. The network and readable files are open to it:
``isolation: sandbox`` on the reward closes them, together with the fork limit that root escapes.
"""

from __future__ import annotations

import builtins
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rewards.library.code import guest

PREFIX = "keel-candidate-"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}


class CandidateError(Exception):
    """The candidate could not answer: it died, broke the protocol, or ran out of time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateLimits:
    """Resources that one candidate may use up."""

    cpu_s: int = 5
    """Processor time. It decides on a busy machine too, where the clock says little about the code."""
    wall_s: float = 20.0
    """Time by the clock, for code that only waits."""
    memory_mb: int = 512
    """Address space, in MiB."""

    @property
    def arguments(self) -> list[str]:
        """Command-line arguments that `rewards.library.code.guest` reads."""
        return [str(self.memory_mb), str(self.cpu_s)]


START_S = 60.0
"""Seconds a process may take to start before that counts as a failure of the machine."""


class Candidate:
    """A running candidate. ``functions`` stand in for the callables that its code defined.

    Raises:
        CandidateError: the code raised, died or ran out of time while it was defined.
        OSError: no process could be started, which is not the candidate's doing.
    """

    def __init__(self, code: str, limits: CandidateLimits) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
        self._channel, guest_end = socket.socketpair()
        self._unread = b""
        with guest_end:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", guest.__file__, str(guest_end.fileno()), *limits.arguments],
                cwd=self._folder.name, env=ENVIRONMENT, start_new_session=True, close_fds=True,
                pass_fds=[guest_end.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            self._ends = time.monotonic() + START_S
            self._line()
            self._ends = time.monotonic() + limits.wall_s
            names = self._ask({"code": code})
        except OSError:
            self.close()
            raise
        except Exception as error:  # whatever the candidate's own code raised when it was defined
            self.close()
            raise CandidateError(f"the code could not be defined: {error}") from error
        listed = names if isinstance(names, list) else []
        self.functions = {str(name): StandIn(self, {"name": str(name)}) for name in listed}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the process with all of its group, and remove its folder."""
        self._channel.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()

    def call(
        self,
        target: Mapping[str, Any],
        path: Sequence[str],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Call a function or method in the candidate's process; arguments are plain data or stand-ins.

        Raises:
            CandidateError: no answer came in time, or none that makes sense.
            Exception: the built-in one that the call raised over there.
        """
        question = {
            **target,
            "path": list(path),
            "args": guest.encode(list(args), of_stand_in),
            "kwargs": guest.encode(dict(kwargs), of_stand_in),
        }
        return guest.decode(self._ask(question), lambda number: StandIn(self, {"handle": number}))

    def _ask(self, question: Mapping[str, Any]) -> Any:
        identifier = secrets.token_hex(8)
        try:
            self._channel.settimeout(self._left())
            self._channel.sendall(json.dumps({"id": identifier, **question}).encode() + b"\n")
            reply = json.loads(self._line())
        except (OSError, ValueError, RecursionError) as error:
            raise CandidateError(f"the candidate gave no answer: {error}") from error
        if not isinstance(reply, dict) or reply.get("id") != identifier:
            raise CandidateError("the candidate answered a question that was not asked")
        if "error" not in reply:
            return reply.get("value")
        # The built-in exception of that name, so that a test can expect it.
        name, message = str(reply["error"]), str(reply.get("message"))
        raised: Exception = CandidateError(f"{name}: {message}")
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            with suppress(TypeError):  # UnicodeDecodeError and its kind want more than a message
                raised = kind(message)
        raise raised

    def _line(self) -> bytes:
        while b"\n" not in self._unread:
            self._channel.settimeout(self._left())
            received = self._channel.recv(1 << 16)
            if not received:
                raise OSError("its process has ended")
            self._unread += received
            if len(self._unread) > guest.LONGEST_LINE:
                raise ValueError("its answer is too long")
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _left(self) -> float:
        left = self._ends - time.monotonic()
        if left <= 0:
            raise TimeoutError("it ran out of time")
        return left


class StandIn:
    """Stand-in for a function or an object in the candidate's process; equal to nothing but itself."""

    __slots__ = ("_candidate", "_path", "_target")

    def __init__(
        self, candidate: Candidate, target: Mapping[str, Any], path: tuple[str, ...] = ()
    ) -> None:
        self._candidate, self._target, self._path = candidate, target, path

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._candidate.call(self._target, self._path, args, kwargs)

    def __getattr__(self, name: str) -> StandIn:
        if name.startswith("_"):
            raise AttributeError(name)
        return StandIn(self._candidate, self._target, (*self._path, name))


def of_stand_in(value: Any) -> Any:
    """Encode a stand-in, so that the candidate's process finds its own object again."""
    if isinstance(value, StandIn) and "handle" in value._target and not value._path:
        return value._target["handle"]
    raise TypeError(f"a {type(value).__name__} cannot be handed to the candidate")


def run_program(code: str, stdin: str, limits: CandidateLimits) -> str | None:
    """Run ``code`` and return what it prints, at most 1 MiB; None when it does not end well in time.

    Isolation is that of `Candidate`.
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        work = folder / "work"
        work.mkdir()
        (work / "program.py").write_text(code, encoding="utf-8")
        (folder / "stdin").write_text(stdin, encoding="utf-8")
        # A file instead of a pipe: the limit on file sizes then also ends what prints without end.
        with (folder / "stdin").open("rb") as source, (folder / "stdout").open("wb") as printed:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", guest.__file__, "program", *limits.arguments],
                cwd=work, env=ENVIRONMENT, start_new_session=True, stdin=source, stdout=printed,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                exit_code = process.wait(limits.wall_s)
            except subprocess.TimeoutExpired:
                return None
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if exit_code != 0:
            return None
        return (folder / "stdout").read_text(encoding="utf-8", errors="replace")

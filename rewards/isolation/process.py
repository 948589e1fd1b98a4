"""Worker process as its owner sees it: started, asked, ended."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from rewards.call import FailureKind, PartFailure
from rewards.isolation.protocol import (
    LONGEST_TEXT,
    Malformed,
    WorkerAnswer,
    pack_request,
    read_answer,
    receive,
    send,
    send_message,
)
from rewards.isolation.sandbox.limits import environment
from rewards.isolation.setup import SETUP_FAILED, Provider, Setup
from rewards.patience import IMPORT_S, SLOW_S, saying
from rollouts.errors import UserError

logger = logging.getLogger(__name__)

START_S = 120.0
"""Seconds for a worker to import a reward."""
ENDING_S = 1.0
"""Seconds between a worker's closed socket and its end."""
END_S = 5.0
"""Seconds for a keeper to end all that its worker started."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Reward that a worker loads, and the confinement it runs under."""

    reward: str | None
    """Name of the reward as in a campaign file; None loads nothing."""
    options: Mapping[str, Any]
    where: str | None
    """Place of the reward in the campaign file, for messages."""
    folder: str
    """Folder in which a relative name is resolved."""
    memory_gib: float | None
    sample_deadline_s: float | None
    environment: tuple[str, ...] = ()
    """Names of variables granted besides the harmless ones."""
    provider: Provider | None = None
    visible: tuple[str, ...] = ()
    describe: bool = False
    """True: the worker only says what the reward is, and ends."""
    serves: str = "rewards.isolation.worker:serve_reward"
    """Function that the worker calls with its channel and this plan, as ``module:name``."""
    user: tuple[int, int] | None = None
    """Ids of the user and the group that a worker without a sandbox becomes; None: it stays this one."""
    temporary: str | None = None
    """Folder of code that was written for this worker alone, and ends with it; None: there is none."""


class WorkerEnded(Exception):
    """A worker that gave no answer; ``failure`` says why."""

    def __init__(self, failure: PartFailure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class Worker:
    """Process that has loaded one reward. Its maker ends it."""

    def __init__(self, plan: Plan, start_s: float | None = None) -> None:
        """Start the process and wait for its reward.

        Args:
            start_s: seconds until it must be ready; None: `START_S`, of which an import may take
                `IMPORT_S`.

        Raises:
            UserError: the reward cannot be loaded.
            WorkerEnded: the process ended, or was not ready in time.
        """
        self._number = 0
        self._temporary = plan.temporary
        self._folder = tempfile.mkdtemp(prefix="keel-reward-")
        os.chmod(self._folder, 0o755)  # a sandbox under root is another user
        with ExitStack() as undo:
            undo.callback(self._remove)
            self._channel, worker_end = socket.socketpair()
            self._control, keepers = socket.socketpair()
            with worker_end, keepers:
                setup = Setup(
                    channel=worker_end.fileno(),
                    control=keepers.fileno(),
                    owner=os.getpid(),
                    scratch=self._folder,
                    folder=plan.folder,
                    memory_bytes=None if plan.memory_gib is None else int(plan.memory_gib * 2**30),
                    provider=plan.provider,
                    visible=plan.visible,
                    user=plan.user,
                    temporary=plan.temporary,
                )
                self._keeper = subprocess.Popen(
                    [sys.executable, "-P", "-m", "rewards.isolation.keeper", setup.dump()],
                    pass_fds=(setup.channel, setup.control),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=environment(Path(self._folder), plan.environment),
                    start_new_session=True,
                )
            undo.callback(self.end)
            self.about = self._hello(plan, start_s)
            undo.pop_all()

    def _hello(self, plan: Plan, limit_s: float | None) -> dict[str, Any]:
        start_s, import_s = (START_S, IMPORT_S) if limit_s is None else (limit_s, limit_s)
        until = time.monotonic() + start_s
        words = ("reward", "options", "where", "folder", "sample_deadline_s", "describe", "serves")
        message = {word: getattr(plan, word) for word in words}
        try:
            self._channel.settimeout(start_s)
            send_message(self._channel, {**message, "scratch": self._folder})
            with saying(
                f"importing {plan.reward} (at most {import_s:g} s)", logger.warning, SLOW_S
            ):
                answer = receive(self._channel, until)
        except (EOFError, OSError, Malformed) as error:
            raise WorkerEnded(self._why(error, start_s)) from error
        if "error" in answer:
            raise UserError(**answer["error"])
        return dict(answer["ready"])

    def ask(
        self, packed: Sequence[str], state: str, limit_s: float, each_s: float | None
    ) -> Iterator[WorkerAnswer]:
        """Yield answers that together decide all samples, in order.

        Args:
            packed: the samples as JSON.
            limit_s: for all of them.
            each_s: for each answer; None: as ``limit_s``.

        Raises:
            WorkerEnded: no answer in time, or the process is gone. It must be ended.
            UserError: the reward has something to say to a person.
        """
        self._number += 1
        until, left = time.monotonic() + limit_s, len(packed)
        allowed = limit_s
        try:
            self._channel.settimeout(limit_s)
            send(self._channel, pack_request(self._number, packed, state))
            while left:
                now = time.monotonic()
                allowed = min(until - now, limit_s if each_s is None else each_s)
                message = receive(self._channel, now + allowed)
                if "error" in message:
                    raise UserError(**message["error"])
                answer = read_answer(message, self._number, left)
                left -= len(answer.outcomes)
                yield answer
        except (EOFError, OSError, Malformed) as error:
            raise WorkerEnded(self._why(error, allowed)) from error

    def call(
        self, message: Mapping[str, Any], limit_s: float, answer: Callable[[Any], Any] | None = None
    ) -> Iterator[Any]:
        """Send a service a message, and yield each of the results that it sends until it is done.

        Args:
            limit_s: for each result.
            answer: answers a question that the service has on the way.

        Raises:
            WorkerEnded: no result in time, or the process is gone. It must be ended.
            UserError: the service has something to say to a person.
        """
        try:
            self._channel.settimeout(limit_s)
            send_message(self._channel, message)
            until = time.monotonic() + limit_s
            while "done" not in (reply := receive(self._channel, until)):
                if "error" in reply:
                    raise UserError(**reply["error"])
                if "question" in reply and answer is not None:
                    send_message(self._channel, {"answer": answer(reply["question"])})
                    continue
                yield reply.get("result")
                until = time.monotonic() + limit_s
        except (EOFError, OSError, Malformed) as error:
            raise WorkerEnded(self._why(error, limit_s)) from error

    def _why(self, error: Exception, limit_s: float) -> PartFailure:
        """End the process and return a failure that says why it gave no answer."""
        ended = self.end(0.0 if isinstance(error, TimeoutError | Malformed) else ENDING_S)
        output = str(ended.get("output", ""))[-LONGEST_TEXT:].strip()
        if isinstance(error, Malformed):
            return PartFailure.of(f"the worker's answer is malformed: {error}")
        if isinstance(error, TimeoutError):
            return PartFailure.of(f"no answer within {limit_s:.3g} s", "deadline")
        if ended.get("exit") == SETUP_FAILED:
            last = output.splitlines()[-1] if output else "no reason given"
            return PartFailure.of(f"the worker could not be confined: {last}", "crash")
        if "closed" in ended:
            return PartFailure.of("the worker closed its connection", "crash")
        number = ended.get("signal")
        if number == signal.SIGKILL:
            reason = "the worker was killed by SIGKILL, most likely because memory ran out"
        elif number is not None:
            reason = f"the worker crashed with {signal.Signals(number).name}"
        else:
            reason = f"the worker exited with code {ended.get('exit', 'unknown')}"
        # Keel's own frames stand below those of the reward.
        printed = takewhile(lambda line: "/rewards/call.py" not in line, output.splitlines())
        trace = "\n".join([reason, *printed])
        kind: FailureKind = "killed" if number == signal.SIGKILL else "crash"
        return PartFailure(reason=reason, trace=trace, kind=kind)

    def hand_over(self, command: bytes, descriptor: int | None = None) -> None:
        """Send a worker of environments a command, with a file descriptor that it gets a copy of.

        Raises:
            OSError: it has ended.
        """
        socket.send_fds(self._channel, [command], [] if descriptor is None else [descriptor])

    def interrupt(self) -> None:
        """Wake the thread that waits for an answer; called from another thread."""
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def end(self, patience_s: float = 0.0) -> dict[str, Any]:
        """Kill the process and all it started; return how it had ended by itself, if it had.

        Args:
            patience_s: for a process that seems to be ending by itself.
        """
        self._channel.close()
        report = b""
        for wait_s in (patience_s, END_S):
            with suppress(OSError):
                self._control.settimeout(wait_s)
                while part := self._control.recv(2**16):
                    report += part
                break
            with suppress(OSError):
                self._control.shutdown(socket.SHUT_WR)  # the keeper's sign to end all
        self._control.close()
        try:
            self._keeper.wait(END_S)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        self._remove()
        try:
            return dict(json.loads(report))
        except ValueError:
            return {}

    def _remove(self) -> None:
        for folder in filter(None, (self._folder, self._temporary)):
            shutil.rmtree(folder, ignore_errors=True)

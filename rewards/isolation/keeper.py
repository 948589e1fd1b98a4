"""The keeper of one worker: starts it, swallows what it prints, and ends all it left behind.

    owner ──control──> keeper ──fork──> worker ──> whatever the reward starts
      └───────────────channel──────────────┘

The keeper is a small process that runs no code of the reward. It adopts every orphan below it, so a
daemon that a reward forks is found however often it changes its session. When the owner says so, or
ends, or the worker ends, everything below the keeper is killed, and the keeper reports how the worker
ended and the last of what it printed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
from typing import NoReturn

from rewards.isolation.sandbox import bwrap, landlock, limits, namespaces
from rewards.isolation.setup import SETUP_FAILED, Setup

KEPT_OUTPUT = 16_384
"""Bytes of a worker's output that are kept: the last ones."""


def main() -> None:
    """Keep one worker until it or its owner ends."""
    setup = Setup.load(sys.argv[1])
    control = socket.socket(fileno=setup.control)
    try:
        limits.adopt_orphans()
        if setup.provider == "namespaces":
            namespaces.enter()
        output, printed = os.pipe()
        worker = os.fork()
    except OSError as error:
        report(control, {"exit": SETUP_FAILED}, str(error).encode())
        return
    if worker == 0:
        control.detach()
        os.close(setup.control)
        os.close(output)
        become_worker(setup, printed)
    os.close(setup.channel)
    os.close(printed)
    os.set_blocking(output, False)
    tail, alone = watch(setup, worker, output)
    ended = end_all(worker)
    for folder in filter(None, (setup.scratch, setup.temporary)):
        shutil.rmtree(folder, ignore_errors=True)
    report(control, ended if alone else {"closed": 1}, read(output, tail))


def become_worker(setup: Setup, printed: int) -> NoReturn:
    """Live as the forked process; never return into the keeper's code."""
    try:
        os.setsid()
        for descriptor in (1, 2):
            os.dup2(printed, descriptor)
        os.close(printed)
        confine(setup)
        from rewards.isolation.worker import serve

        serve(setup.channel)
    except OSError as error:
        os.write(2, f"{error}\n".encode())
        os._exit(SETUP_FAILED)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(1)


def confine(setup: Setup) -> None:
    """Give up everything that a worker must not have."""
    parent = os.getppid()
    limits.end_first()  # of another user the file can no longer be written
    if setup.provider == "namespaces":
        namespaces.confine(setup)
    if setup.provider == "bwrap":
        namespaces.become_nobody()
        limits.end_with_parent(parent)
        bwrap.become(setup)
    if setup.user is not None:
        os.chown(setup.scratch, *setup.user)
        limits.change_user(*setup.user)
    limits.end_with_parent(parent)
    settle(setup)


def settle(setup: Setup) -> None:
    """Set the last limits, inside whatever sandbox there is."""
    os.set_inheritable(setup.channel, False)
    limits.limit(setup.memory_bytes, limits.MOST_PROCESSES if setup.provider else None)
    limits.forgo_privileges()
    if setup.provider:
        landlock.restrict(setup.scratch)
    elif landlock.set_apart():
        limits.forgo_capabilities(limits.LOOKING)
    faulthandler.enable()


def watch(setup: Setup, worker: int, output: int) -> tuple[bytes, bool]:
    """Wait until the worker ends or has to; return the end of its output, and if it ended alone."""
    ended = os.pidfd_open(worker)
    poll = select.poll()
    for descriptor in (setup.control, output, ended):
        poll.register(descriptor, select.POLLIN)
    tail = b""
    while os.getppid() == setup.owner:  # a forked copy of the owner may hold the socket open
        ready = {descriptor for descriptor, _ in poll.poll(1000)}
        if setup.control in ready or ended in ready:
            break
        if output in ready:
            data = os.read(output, KEPT_OUTPUT)
            tail = (tail + data)[-KEPT_OUTPUT:]
            if not data:
                poll.unregister(output)
    return tail, readable(ended)


def readable(descriptor: int) -> bool:
    """Tell if there is something to read now; a process is readable once it has ended."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def end_all(worker: int) -> dict[str, int]:
    """Kill everything below this process and reap it; return how the worker ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker, signal.SIGKILL)
    status = 0
    while True:
        for child in children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        try:
            reaped, reaped_status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if reaped == worker:
            status = reaped_status
        elif reaped == 0:
            time.sleep(0.001)
    if os.WIFSIGNALED(status):
        return {"signal": os.WTERMSIG(status)}
    return {"exit": os.WEXITSTATUS(status)}


def children() -> list[int]:
    """List this process's children. Orphans below it become its children when their parents end."""
    me = os.getpid()
    with open(f"/proc/{me}/task/{me}/children") as file:
        return [int(word) for word in file.read().split()]


def read(output: int, tail: bytes) -> bytes:
    """Read the rest of a pipe whose writers have ended."""
    with contextlib.suppress(BlockingIOError):
        while data := os.read(output, KEPT_OUTPUT):
            tail = (tail + data)[-KEPT_OUTPUT:]
    return tail


def report(control: socket.socket, ended: dict[str, int], output: bytes) -> None:
    """Send the worker's end and its output to the owner, if it still listens."""
    message = {**ended, "output": output.decode(errors="replace")}
    with contextlib.suppress(OSError):
        control.sendall(json.dumps(message).encode())


if __name__ == "__main__":
    main()

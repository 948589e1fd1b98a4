"""Rewards that misbehave in every way we know of. A completion's text says which trap springs."""

from __future__ import annotations

import asyncio
import builtins
import ctypes
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def sleeps() -> float:
    time.sleep(3600)
    return 0.0


def loops() -> float:
    while True:
        pass


def ignores_signals() -> float:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    return sleeps()


def exits() -> float:
    os._exit(0)


def segfaults() -> float:
    ctypes.string_at(0)
    return 0.0


def aborts() -> float:
    os.abort()


def is_killed() -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return sleeps()


def allocates() -> float:
    return float(len(bytearray(8 * 10**9)))


def closes_everything() -> float:
    os.closerange(3, 256)
    return 1.0


def forges() -> float:
    """Answers in the worker's place, on its own socket."""
    for descriptor in range(3, 64):
        try:
            if os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:"):
                os.write(descriptor, (11).to_bytes(4, "big") + b'{"id": 1e9}')
        except OSError:
            continue
    return 1.0


def raises() -> float:
    raise ZeroDivisionError("sample 7")


def leaves() -> float:
    sys.exit("bye")


def interrupts() -> float:
    raise KeyboardInterrupt


FATAL: dict[str, Callable[[], float]] = {
    function.__name__: function
    for function in (
        sleeps, loops, ignores_signals, exits, segfaults, aborts, is_killed, allocates,
        closes_everything, forges, raises, leaves, interrupts,
    )
}  # fmt: skip


def spring(completions: list[str]) -> list[float]:
    """The length of a text; a trap for a text that names one."""
    return [FATAL[text]() if text in FATAL else float(len(text)) for text in completions]


def odd(completions: list[str]) -> Any:
    """Return something that is no list of numbers."""
    values = {
        "nan": math.nan, "inf": math.inf, "str": "1.0", "list": [1.0], "none": None, "huge": 10**400,
    }  # fmt: skip
    if "short" in completions:
        return [1.0]
    if "text" in completions:
        return "x" * len(completions)
    return [values.get(text, 1.0) for text in completions]


def tensors(completions: list[str]) -> Any:
    """Scalars of torch, one of them on a device without data."""
    import torch

    return [torch.ones((), device="meta" if text == "meta" else "cpu") for text in completions]


def prints(completions: list[str]) -> list[float]:
    """1 GiB, then a last word and the end."""
    line = "x" * (2**20 - 1) + "\n"
    for _ in range(2**10):
        sys.stdout.write(line)
    if "end" in completions:
        print("the last word", file=sys.stderr, flush=True)
        os._exit(3)
    return [1.0] * len(completions)


def closes_stdout(completions: list[str]) -> list[float]:
    sys.stdout.close()
    os.close(1)
    return [1.0] * len(completions)


def daemon(completions: list[str], log_extra: Any) -> list[float]:
    """Leaves a process behind that has changed its session, group and parent."""
    code = (
        "import os, time\nif os.fork(): os._exit(0)\nos.setsid()\nprint(os.getpid(), flush=True)\n"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", code + "time.sleep(3600)"], stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert started.stdout is not None
    log_extra("pid", [int(started.stdout.readline())])
    return [1.0] * len(completions)


def fork_bomb(completions: list[str], log_extra: Any) -> list[float]:
    """Forks as often as it can; its children do nothing but live."""
    count = 0
    try:
        while count < 5000:
            if os.fork() == 0:
                time.sleep(3600)
            count += 1
    except OSError as error:
        log_extra("refused", [count, str(error)])
    return [1.0] * len(completions)


def vandal(completions: list[str]) -> list[float]:
    """Spoils the modules that a worker needs itself."""
    json.dumps = json.loads = lambda *_, **__: "spoilt"  # type: ignore[assignment]
    time.monotonic = time.time = lambda: 0.0
    builtins.len = lambda _: 0  # type: ignore[assignment]
    dict.fromkeys([1])
    return [1.0 for _ in completions]


class Hostile(float):
    """A number that cannot be compared, and says that it is another one."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not comparable")

    def __lt__(self, other: object) -> bool:
        return True

    __hash__ = float.__hash__

    def __repr__(self) -> str:
        return "1e9"


def hostile(completions: list[str]) -> list[float]:
    """Numbers of its own kind, and a class of the worker's that calls everything equal."""
    from rewards.base import Sample

    Sample.__eq__ = lambda *_: True  # type: ignore[method-assign]
    return [Hostile(len(text)) for text in completions]


async def never_awaits(completions: list[str]) -> list[float]:
    if "sleeps" in completions:
        time.sleep(3600)
    return [1.0] * len(completions)


async def slow(completions: list[str]) -> list[float]:
    """Waits as it should, for too long."""
    if "slow" in completions:
        await asyncio.sleep(3600)
    return [1.0] * len(completions)


def spoils_column(completions: list[str], answer: list[Any]) -> list[float]:
    for value in answer:
        value.append("spoilt")
    return [float(len(value)) for value in answer]


def looks_around(completions: list[str], log_extra: Any, secret: str = "", victim: str = "") -> Any:
    """Everything a sandbox refuses, with what became of each attempt."""
    attempts: dict[str, Callable[[], Any]] = {
        "environment": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
        "owner": lambda: Path(f"/proc/{victim}/environ").read_bytes(),
        "socket": lambda: socket.create_connection(("127.0.0.1", 9), 1),
        "datagram": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(
            b"x", ("10.0.0.1", 9)
        ),
        "read": lambda: Path(secret).read_text(),
        "write": lambda: Path(secret).write_text("spoilt"),
        "write_here": lambda: Path(__file__).with_name("left.txt").write_text("x"),
        "write_tmp": lambda: Path("/tmp/left.txt").write_text("x"),
        "write_root": lambda: Path("/left.txt").write_text("x"),
        "mount": lambda: _mounts(),
        "kill": lambda: os.kill(int(victim), 0),
    }
    for name, attempt in attempts.items():
        try:
            log_extra(name, [f"done: {attempt()!r}"])
        except OSError as error:
            log_extra(name, [type(error).__name__])
    Path("own.txt").write_text("x")
    log_extra("own", [sorted(os.listdir())])
    return [1.0] * len(completions)


def _mounts() -> int:
    if ctypes.CDLL(None).mount(b"tmpfs", b"/usr", b"tmpfs", 0, None):
        raise PermissionError
    return 0


def environment(completions: list[str], log_extra: Any) -> list[float]:
    log_extra("names", sorted(os.environ))
    log_extra("folder", [os.getcwd(), os.environ["HOME"], sys.stdin.read()])
    return [1.0] * len(completions)


def counts_calls(completions: list[str], log_metric: Any, log_extra: Any) -> list[float]:
    log_metric("size", len(completions))
    log_extra("texts", completions)
    return [float(os.getpid())] * len(completions)


def asks_a_person(completions: list[str]) -> list[float]:
    from rollouts.errors import UserError

    raise UserError("install the judge", remedy="pip install judge")

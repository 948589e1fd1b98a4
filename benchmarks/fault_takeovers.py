"""Takeovers of a store: two runners in real processes and PID namespaces, on hosts whose clocks differ.

The first holds the lease and then lives on, is killed, is stopped, or ends. The second wants it. Who may
have it follows from what became of the first and never from a clock.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.fault_trial import FaultOutcome, FaultTrial

NAMESPACE = ("unshare", "-Urpf", "--mount-proc")
"""Command that runs another one in a PID namespace of its own, under the same host name."""
EXPIRY_S = 4.0
CLOCKS = (-86400.0, -960.0, -5.0, 0.0, 5.0, 960.0, 86400.0)
"""Seconds by which a host's clock is wrong."""
FATES = ("lives", "killed", "stopped", "ended")
DEADLINE_S = 120.0
RUNNER = """
import sys, time
from align.errors import StaleAttempt, StoreBusy
from align.store.ledger.leases import Claimant, leased
from align.store.ledger.ledger import Ledger
url, offset, expiry = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
claimant = Claimant(expiry_s=expiry, clock=lambda: time.time() + offset)
try:
    with leased(Ledger(url).database, claimant) as lease:
        print("has", flush=True)
        sys.stdin.readline()
        lease.beat()
        print("keeps", flush=True)
except StoreBusy:
    print("busy", flush=True)
except StaleAttempt:
    print("stale", flush=True)
"""


class Runner:
    """A process that wants the lease.

    Args:
        inside: it runs in a PID namespace of its own.
        offset: seconds by which its host's clock is wrong.
    """

    def __init__(self, url: str, *, inside: bool, offset: float) -> None:
        words = [sys.executable, "-c", RUNNER, url, str(offset), str(EXPIRY_S)]
        self.process = subprocess.Popen(
            [*(NAMESPACE if inside else ()), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.inside = inside

    def says(self) -> str:
        """Read its next word; empty if it ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def send(self, number: signal.Signals) -> None:
        """Send the runner itself a signal."""
        import psutil

        wrapper = psutil.Process(self.process.pid)
        for process in wrapper.children(recursive=True) if self.inside else [wrapper]:
            process.send_signal(number)

    def end(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.communicate()


def expected(fate: str, *, seen: bool) -> str:
    """Return what the second runner must say; ``seen``: it can look at the first."""
    if fate == "lives" or (fate == "stopped" and seen):
        return "busy"
    return "has"


def contested(seed: int, folder: Path) -> FaultOutcome:
    """Let two runners of drawn places, clocks and fates want one store."""
    from align.store.ledger.ledger import Ledger

    draw = random.Random(seed)
    fate, places = FATES[seed % len(FATES)], [draw.random() < 0.5 for _ in range(2)]
    offsets = [draw.choice(CLOCKS) for _ in range(2)]
    url = f"sqlite:///{folder / 'ledger.db'}"
    Ledger(url)
    runners = [Runner(url, inside=places[0], offset=offsets[0])]
    try:
        if runners[0].says() != "has":
            return FaultOutcome.lost("the first runner was not let into a free store")
        strike(runners[0], fate)
        began = time.monotonic()
        runners.append(Runner(url, inside=places[1], offset=offsets[1]))
        word, took_s = runners[1].says(), time.monotonic() - began
        due = expected(fate, seen=not any(places))
        story = f"first {fate}, inside {places}, clocks {offsets}: {word} after {took_s:.1f} s"
        if word != due:
            return FaultOutcome.lost(f"{story}, expected {due}")
        if fate == "stopped" and due == "has":
            runners[0].send(signal.SIGCONT)
            runners[0].go_on()
            if (last := runners[0].says()) != "stale":
                return FaultOutcome.lost(f"{story}; the first then says {last!r}")
        return FaultOutcome.kept(story)
    finally:
        for runner in runners:
            runner.end()


def strike(runner: Runner, fate: str) -> None:
    """Let a runner meet its fate."""
    if fate == "killed":
        runner.send(signal.SIGKILL)
        runner.process.wait(DEADLINE_S)
    elif fate == "stopped":
        runner.send(signal.SIGSTOP)
    elif fate == "ended":
        runner.go_on()
        runner.process.wait(DEADLINE_S)


TRIALS: Mapping[str, FaultTrial] = {
    "store-contested": FaultTrial(
        tried="Two runners want one store, each on the host or in a PID namespace of its own, with clocks "
        "up to a day wrong; the first lives, is killed, is stopped or ends. A live one is never replaced, "
        "a dead one is within its expiry, and one that was replaced while stopped ends when it wakes.",
        tries=40,
        run=contested,
    ),
}

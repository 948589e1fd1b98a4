"""One live runner per store (I10), whoever dies, and however."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from align.errors import StaleAttempt, StoreBusy
from align.store.ledger import leases as claims
from align.store.ledger.ledger import Ledger
from tests.unit.ledgers import python, raw, started, url


def answer(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def tell(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdin is not None
    child.stdin.write(f"{line}\n")
    child.stdin.flush()


def test_a_second_claim_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    with ledger.claim("keel run digits") as claim:
        claim.beat()
        with (
            pytest.raises(StoreBusy, match=f"keel run digits is already running .*{os.getpid()}"),
            Ledger(url(tmp_path)).claim(),
        ):
            pass
    with ledger.claim():
        pass


def test_a_claim_is_released_by_an_exception(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    with pytest.raises(ZeroDivisionError), ledger.claim():
        raise ZeroDivisionError
    with ledger.claim():
        pass


CLAIMING = """
import sys
from align.errors import StoreBusy
from align.store.ledger.ledger import Ledger
print("ready", flush=True)
sys.stdin.readline()
try:
    with Ledger(sys.argv[1]).claim():
        print("won", flush=True)
        sys.stdin.readline()
except StoreBusy:
    print("busy", flush=True)
"""


def test_i10_of_six_processes_on_a_fresh_store_exactly_one_wins(tmp_path: Path) -> None:
    children = [python(CLAIMING, url(tmp_path)) for _ in range(6)]
    assert [answer(child) for child in children] == ["ready"] * 6
    for child in children:
        tell(child, "go")
    assert sorted(answer(child) for child in children) == ["busy"] * 5 + ["won"]
    for child in children:
        child.communicate("done\n")
        assert child.returncode == 0


def test_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    child = python(CLAIMING, url(tmp_path))
    tell(child, "go")
    assert [answer(child), answer(child)] == ["ready", "won"]
    with pytest.raises(StoreBusy), ledger.claim():
        pass
    child.kill()
    # Dead, but still in the process table: nobody has asked for its exit status yet.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with ledger.claim() as claim:
        claim.beat()
    child.communicate()


def foreign(tmp_path: Path, **values: Any) -> None:
    """Rewrite the held claim as if another process had written it."""
    changes = ", ".join(f"{name} = ?" for name in values)
    with raw(tmp_path) as connection:
        connection.execute(f"UPDATE claims SET {changes}", tuple(values.values()))


def test_a_reused_pid_is_not_the_owner(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    with ledger.claim() as claim:
        foreign(tmp_path, process_started=psutil.Process().create_time() - 60)
        with Ledger(url(tmp_path)).claim() as successor:
            successor.beat()
            with pytest.raises(StaleAttempt, match="took this store over"):
                claim.beat()


def test_another_host_is_trusted_until_its_heartbeat_expires(tmp_path: Path) -> None:
    now = 1000.0
    ledger = started(tmp_path, clock=lambda: now)
    with ledger.claim() as claim:
        foreign(tmp_path, host=f"not-{socket.gethostname()}", pid=1)
        now += claims.EXPIRY_S - 1
        with pytest.raises(StoreBusy), ledger.claim():
            pass
        claim.beat()
        now += claims.EXPIRY_S - 1
        with pytest.raises(StoreBusy), ledger.claim():
            pass
        now += 2
        with ledger.claim(), pytest.raises(StaleAttempt):
            claim.beat()


def test_a_replaced_runner_does_not_release_its_successors_claim(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    first = ledger.claim()
    first.__enter__()
    foreign(tmp_path, process_started=0.0)
    with ledger.claim() as successor:
        first.__exit__(None, None, None)
        successor.beat()

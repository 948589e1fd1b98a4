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
from align.store.ledger import leases
from align.store.ledger.ledger import Ledger
from tests.unit.ledgers import python, raw, started, url


def answer(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def tell(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdin is not None
    child.stdin.write(f"{line}\n")
    child.stdin.flush()


def test_a_second_lease_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    with ledger.lease("keel run digits") as lease:
        lease.beat()
        with (
            pytest.raises(StoreBusy, match=f"keel run digits is already running .*{os.getpid()}"),
            Ledger(url(tmp_path)).lease(),
        ):
            pass
    with ledger.lease():
        pass


def test_a_lease_is_released_by_an_exception(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    with pytest.raises(ZeroDivisionError), ledger.lease():
        raise ZeroDivisionError
    with ledger.lease():
        pass


CLAIMING = """
import sys
from align.errors import StoreBusy
from align.store.ledger.ledger import Ledger
print("ready", flush=True)
sys.stdin.readline()
try:
    with Ledger(sys.argv[1]).lease():
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
    with pytest.raises(StoreBusy), ledger.lease():
        pass
    child.kill()
    # Dead, but still in the process table: nobody has asked for its exit status yet.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with ledger.lease() as lease:
        lease.beat()
    child.communicate()


def foreign(tmp_path: Path, **values: Any) -> None:
    """Rewrite the lease as if another process had written it."""
    changes = ", ".join(f"{name} = ?" for name in values)
    with raw(tmp_path) as connection:
        connection.execute(f"UPDATE claims SET {changes}", tuple(values.values()))


def test_a_reused_pid_is_not_the_owner(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    with ledger.lease() as lease:
        foreign(tmp_path, process_started=psutil.Process().create_time() - 60)
        with Ledger(url(tmp_path)).lease() as successor:
            successor.beat()
            with pytest.raises(StaleAttempt, match="took this store over"):
                lease.beat()


def test_another_host_is_trusted_until_its_heartbeat_expires(tmp_path: Path) -> None:
    now = 1000.0
    ledger = started(tmp_path, clock=lambda: now)
    with ledger.lease() as lease:
        foreign(tmp_path, host=f"not-{socket.gethostname()}", pid=1)
        now += leases.EXPIRY_S - 1
        with pytest.raises(StoreBusy), ledger.lease():
            pass
        lease.beat()
        now += leases.EXPIRY_S - 1
        with pytest.raises(StoreBusy), ledger.lease():
            pass
        now += 2
        with ledger.lease(), pytest.raises(StaleAttempt):
            lease.beat()


def test_a_replaced_runner_does_not_release_its_successors_lease(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    first = ledger.lease()
    first.__enter__()
    foreign(tmp_path, process_started=0.0)
    with ledger.lease() as successor:
        first.__exit__(None, None, None)
        successor.beat()

"""One live runner per store (I10), whoever dies, and however."""

from __future__ import annotations

import os
import subprocess
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from align.errors import StaleAttempt, StoreBusy
from align.store.ledger import leases
from align.store.ledger.leases import Claimant, Holder, Lease, take_lease
from align.store.ledger.ledger import Ledger
from align.store.snapshots.staging import abandoned, clear_abandoned, staged
from rollouts.machine.process import (
    ProcessIdentity,
    ProcessState,
    sees_every_process,
    this_process,
)
from tests.unit.ledgers import RAM, python, raw, started, url


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
    with Ledger(sys.argv[1]).lease(expiry_s=float(sys.argv[2])):
        print("won", flush=True)
        sys.stdin.readline()
except StoreBusy:
    print("busy", flush=True)
"""


def test_i10_of_six_processes_on_a_fresh_store_exactly_one_wins(tmp_path: Path) -> None:
    children = [python(CLAIMING, url(tmp_path), "120") for _ in range(6)]
    assert [answer(child) for child in children] == ["ready"] * 6
    for child in children:
        tell(child, "go")
    assert sorted(answer(child) for child in children) == ["busy"] * 5 + ["won"]
    for child in children:
        child.communicate("done\n")
        assert child.returncode == 0


def test_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    child = python(CLAIMING, url(tmp_path), "120")
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
        connection.execute(f"UPDATE lease_renewals SET {changes}", tuple(values.values()))


def by_an_old_version(tmp_path: Path, **values: Any) -> None:
    """Rewrite the lease as a version without renewals wrote it."""
    changes = ", ".join(f"{name} = ?" for name in values)
    with raw(tmp_path) as connection:
        connection.execute("DELETE FROM lease_renewals")
        connection.execute(f"UPDATE claims SET {changes}", tuple(values.values()))


def test_a_reused_pid_is_not_the_owner(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    with ledger.lease() as lease:
        foreign(tmp_path, start_ticks=this_process().start_ticks - 1)
        with Ledger(url(tmp_path)).lease() as successor:
            successor.beat()
            with pytest.raises(StaleAttempt, match="took this store over"):
                lease.beat()


def test_a_replaced_runner_does_not_release_its_successors_lease(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    first = ledger.lease()
    first.__enter__()
    foreign(tmp_path, start_ticks=1)
    with ledger.lease() as successor:
        first.__exit__(None, None, None)
        assert successor.renew()


def test_a_runner_elsewhere_is_not_replaced_while_it_renews_in_a_long_step(tmp_path: Path) -> None:
    """Its step never ends here: nothing beats but the thread."""
    ledger, notes = started(tmp_path), list[str]()
    with ledger.lease("keel run", expiry_s=1.0) as lease:
        foreign(tmp_path, namespace="another-boot pid:[1]")
        with (
            pytest.raises(StoreBusy, match="already running"),
            ledger.lease(expiry_s=1.0, note=notes.append),
        ):
            pass
        lease.beat()
    (line,) = notes
    assert line.endswith("taking over if it stays silent for 1 s")


def test_a_silent_runner_elsewhere_is_replaced_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = started(tmp_path)
    silent = take_lease(ledger.database, Claimant(expiry_s=0.2))
    foreign(tmp_path, namespace="another-boot pid:[1]")
    with ledger.lease("keel gc") as lease:  # A command that tells nobody else.
        assert "keel run holds this store" in caplog.text
        assert lease.predecessor == "unknown"
        with pytest.raises(StaleAttempt):
            silent.beat()
    with ledger.lease() as lease:
        assert lease.predecessor is None


def test_leases_of_old_versions_are_read(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    began = psutil.Process().create_time()
    with ledger.lease():
        by_an_old_version(tmp_path, process_started=began)
        with pytest.raises(StoreBusy, match="keel run is already running"), ledger.lease():
            pass
    watching = Simulation()
    claimant = watching.claimant("near", boot="a")
    for values in ({"host": "far"}, {"process_started": began - 5.0}):
        with ledger.lease():
            by_an_old_version(tmp_path, **values)
            start = watching.now
            take_lease(ledger.database, replace(claimant, look=Holder.state)).release()
            assert watching.now - start == pytest.approx(leases.OLD_EXPIRY_S)
    with ledger.lease():
        by_an_old_version(tmp_path, pid=NOBODY)
        lease = take_lease(ledger.database, replace(claimant, look=Holder.state))
        assert lease.predecessor == ("ended" if sees_every_process() else "unknown")
        lease.release()


NOBODY = 2**22 - 7
"""Number that no process here has."""
IN_A_NAMESPACE = ("unshare", "-Urpf", "--mount-proc")


def namespaces_are_allowed() -> bool:
    return (
        which("unshare") is not None
        and subprocess.run([*IN_A_NAMESPACE, "true"], capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not namespaces_are_allowed(), reason="the kernel refuses PID namespaces")
def test_runners_of_two_pid_namespaces_do_not_replace_each_other(tmp_path: Path) -> None:
    """Host name and kernel are the same, and the number of the process is another one's outside."""
    ledger = started(tmp_path)
    inside = python(CLAIMING, url(tmp_path), "2", before=IN_A_NAMESPACE)
    tell(inside, "go")
    assert [answer(inside), answer(inside)] == ["ready", "won"]
    with pytest.raises(StoreBusy, match="already running"), ledger.lease():
        pass
    inside.communicate("done\n")
    with ledger.lease("keel run", expiry_s=2.0) as lease:
        other = python(CLAIMING, url(tmp_path), "2", before=IN_A_NAMESPACE)
        tell(other, "go")
        assert [answer(other), answer(other)] == ["ready", "busy"]
        other.communicate("")
        lease.beat()


@pytest.mark.skipif(not namespaces_are_allowed(), reason="the kernel refuses PID namespaces")
def test_an_old_version_in_another_pid_namespace_is_not_taken_over_at_once(tmp_path: Path) -> None:
    """Its number is nobody's here: nothing but its silence says that it ended."""
    ledger = started(tmp_path)
    numbered = ("sh", "-c", f'echo {NOBODY - 1} > /proc/sys/kernel/ns_last_pid; "$@"; true', "sh")
    inside = python(CLAIMING, url(tmp_path), "120", before=(*IN_A_NAMESPACE, *numbered))
    tell(inside, "go")
    assert [answer(inside), answer(inside)] == ["ready", "won"]
    with raw(tmp_path) as connection:
        (number,) = connection.execute("SELECT pid FROM claims").fetchone()
    assert number == NOBODY and not psutil.pid_exists(number)
    by_an_old_version(tmp_path, pid=number)
    watching = Simulation()
    claimant = replace(watching.claimant("near", boot="a"), look=Holder.state)
    lease = take_lease(ledger.database, claimant)
    assert watching.now == pytest.approx(leases.OLD_EXPIRY_S) and lease.predecessor == "unknown"
    lease.release()
    inside.communicate("done\n")


@dataclass
class Runner:
    """A runner of the simulation."""

    host: str
    lease: Lease
    number: int


class Simulation:
    """Hosts whose clocks are set at will, and one true time that only stopwatches follow."""

    EXPIRY_S = 120.0

    def __init__(self) -> None:
        self.now = 0.0
        self.offsets: dict[str, float] = {}
        self.alive: set[tuple[str, int]] = set()
        """Places and numbers of the processes that live."""
        self.runners: list[Runner] = []
        self.frozen: set[int] = set()
        """Numbers of runners that are stopped."""

    def claimant(self, host: str, boot: str, number: int = 1) -> Claimant:
        """A process on a host: it sees those of its own boot, and all clocks but its stopwatch lie."""

        def look(holder: Holder) -> ProcessState:
            if holder.process.namespace != boot:
                return "unknown"
            return "lives" if (boot, holder.process.pid) in self.alive else "ended"

        return Claimant(
            host=host,
            process=ProcessIdentity(namespace=boot, pid=number, start_ticks=number),
            expiry_s=self.EXPIRY_S,
            clock=lambda: 1e9 + self.now + self.offsets.get(host, 0.0),
            stopwatch=lambda: self.now,
            sleep=self.sleep,
            look=look,
        )

    def sleep(self, seconds: float) -> None:
        """Let time pass; runners that live and are not stopped renew on their way."""
        until = self.now + seconds
        step = self.EXPIRY_S / leases.RENEWALS_PER_EXPIRY
        while self.now < until:
            self.now = min(until, self.now + step)
            for runner in self.runners:
                if runner.number not in self.frozen:
                    runner.lease.renew()


HOSTS = st.sampled_from(["north", "south", "south/container"])
"""The last two are one name for the ledger, and two PID namespaces."""


class Takeovers(RuleBasedStateMachine):
    """Runners that come, die and are stopped on hosts whose clocks jump."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory(dir=RAM)
        self.ledger = started(Path(self.folder.name))
        self.world = Simulation()
        self.count = 0

    @rule(host=HOSTS, seconds=st.sampled_from([-86400.0, -5.0, 5.0, 960.0, 86400.0]))
    def step_a_clock(self, host: str, seconds: float) -> None:
        name = host.partition("/")[0]
        self.world.offsets[name] = self.world.offsets.get(name, 0.0) + seconds

    @rule(seconds=st.sampled_from([1.0, 50.0, 1000.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.sleep(seconds)

    @rule()
    def kill(self) -> None:
        for runner in self.world.runners:
            self.world.alive.discard((runner.host, runner.number))
        self.world.runners.clear()

    @rule()
    def stop(self) -> None:
        self.world.frozen.update(runner.number for runner in self.world.runners)

    @rule()
    def wake(self) -> None:
        self.world.frozen.clear()

    @rule(host=HOSTS)
    def begin(self, host: str) -> None:
        self.count += 1
        number = self.count
        claimant = self.world.claimant(host.partition("/")[0], boot=host, number=number)
        holders, before = list(self.world.runners), self.world.now
        try:
            lease = take_lease(self.ledger.database, claimant)
        except StoreBusy:
            assert holders, "nobody lives, and nobody is let in"
            # Who is busy is told within two renewals.
            waited = self.world.now - before
            assert waited <= 2 * claimant.expiry_s / leases.RENEWALS_PER_EXPIRY
            return
        assert self.world.now - before <= 1.1 * claimant.expiry_s
        for runner in holders:
            assert runner.number in self.world.frozen, "a runner that renewed was replaced"
            assert runner.host != host, "a process that can be seen was taken for dead"
            assert not runner.lease.renew()
        self.world.runners[:] = [Runner(host, lease, number)]
        self.world.alive.add((host, number))

    @rule()
    def end(self) -> None:
        for runner in self.world.runners:
            runner.lease.release()
        self.kill()

    def teardown(self) -> None:
        self.folder.cleanup()


TestTakeovers = Takeovers.TestCase
TestTakeovers.settings = settings(
    max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_looking_for_what_was_abandoned_leaves_writers_their_lock(tmp_path: Path) -> None:
    """Lookers hold a new lock for an instant; its writer waits, and does not go on without."""
    root = tmp_path / "staging"
    root.mkdir()
    (root / "kept").mkdir()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            abandoned(root)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(300):
            with staged(root) as folder:
                assert folder not in abandoned(root)
    finally:
        stop.set()
        for looker in lookers:
            looker.join()


def test_staging_is_removed_once_its_writer_is_gone(tmp_path: Path) -> None:
    root = tmp_path / "staging"
    with staged(root) as folder:
        (folder / "weights").write_text("half")
        (root / "old").mkdir()
        writer = python(STAGING, str(root))
        theirs = Path(answer(writer))
        assert clear_abandoned(root) == 1
        assert folder.exists() and theirs.exists() and not (root / "old").exists()
        writer.kill()
        writer.communicate()
        assert clear_abandoned(root) == 1
        assert folder.exists() and not theirs.exists()
    assert list(tmp_path.iterdir()) == []


STAGING = """
import sys
from pathlib import Path
from align.store.snapshots.staging import staged
with staged(Path(sys.argv[1])) as folder:
    print(folder, flush=True)
    sys.stdin.readline()
"""

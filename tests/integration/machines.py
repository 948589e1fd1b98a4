"""Several machines on this one: each with its own network address, host name, processes and Ray folder.

A machine is a set of Linux namespaces that belongs to one process: when that process is killed the
machine is gone at once with everything that ran on it, as in a power cut, and nothing is left to clear
up. A switch, in a network namespace of its own, connects them; nothing is reachable from outside.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.patience import patient

PATIENCE_S = patient(120.0)
ISOLATED = (
    "unshare",
    "--net",
    "--mount",
    "--uts",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
)
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_prestart_worker_first_driver": "0",
}
"""Ray's workers as Keel has them: none before it is asked for, and none behind other processes."""
RAY = str(Path(sys.executable).with_name("ray"))
AGENT_PORTS = (
    "--dashboard-agent-grpc-port=6380",
    "--dashboard-agent-listen-port=6381",
    "--runtime-env-agent-port=6382",
    "--metrics-export-port=6383",
)
"""Ports of the agents of a node. A raylet waits 15 s for agents that choose theirs, and then aborts."""


def why_not() -> str | None:
    """Say why machines cannot be made here; None if they can."""
    try:
        probe = subprocess.run(
            [*ISOLATED, "ip", "link", "add", "probe", "type", "veth"],
            capture_output=True,
            timeout=patient(20),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no namespaces: {error}"
    return None if probe.returncode == 0 else f"no namespaces: {probe.stderr.decode().strip()}"


class Machine:
    """One of them; ``process`` is its life."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], address: str) -> None:
        self.name, self.process, self.address = name, process, address

    def run(self, folder: Path, *words: str) -> list[str]:
        """A command that runs on it, in a folder."""
        (init,) = psutil.Process(self.process.pid).children()
        there = ["sh", "-c", 'cd "$0" && exec "$@"', str(folder), *words]
        return ["nsenter", "--target", str(init.pid), "--all", "--", *there]

    def kill(self) -> None:
        """Cut its power."""
        self.process.kill()
        self.process.wait()


class Machines:
    """A switch and what is connected to it."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self._folder, self._environ = folder, environ
        self._count = 0
        self.all: list[Machine] = []
        self._switch = self._boot("switch", ["sleep", "infinity"])
        self._inside(self._switch, "ip link add bridge type bridge")
        self._inside(self._switch, "ip link set bridge up")

    def add(self, name: str, command: Sequence[str], lacks: Path | None = None) -> Machine:
        """Switch a machine on; it runs the command once it has its network, and again if it ends.

        ``ADDRESS`` in the command stands for the machine's own address. Services are restarted as on any
        server: a start of Ray that was too slow on a busy host is not the end of the machine. In place of a
        folder that it ``lacks`` it has an empty disk.
        """
        self._count += 1
        number, ready = self._count, self._folder / f"{name}-{self._count}.up"
        script = f'while [ ! -e "{ready}" ]; do sleep 0.05; done; while :; do "$@"; sleep 1; done'
        port, address = f"port{number}", f"10.77.0.{number}"
        command = [word.replace("ADDRESS", address) for word in command]
        process = self._boot(name, ["sh", "-c", script, "sh", *command], lacks)
        self._inside(
            self._switch, f"ip link add {port} type veth peer name eth0 netns {process.pid}"
        )
        self._inside(self._switch, f"ip link set {port} master bridge up")
        self._inside(process, f"ip address add {address}/24 dev eth0")
        self._inside(process, "ip link set eth0 up")
        self._inside(process, "ip link set lo up")
        ready.touch()
        self.all.append(Machine(name, process, address))
        return self.all[-1]

    def close(self) -> None:
        """Switch everything off."""
        for machine in self.all:
            machine.kill()
        self._switch.kill()
        self._switch.wait()

    def cut(self, machine: Machine, *, off: bool = True) -> None:
        """Pull the plug of a machine's network, or put it back."""
        number = machine.address.rpartition(".")[2]
        self._inside(self._switch, f"ip link set port{number} {'down' if off else 'up'}")

    def _boot(
        self, name: str, command: Sequence[str], lacks: Path | None = None
    ) -> subprocess.Popen[bytes]:
        ray = self._folder / f"{name}-ray"
        ray.mkdir(exist_ok=True)
        Path("/tmp/ray").mkdir(exist_ok=True)
        empty = "" if lacks is None else f'mount -t tmpfs none "{lacks}" && '
        script = f'hostname {name} && {empty}mount --bind "{ray}" /tmp/ray && exec "$@"'
        log = (self._folder / f"{name}.log").open("ab")
        process = subprocess.Popen(
            [*ISOLATED, "sh", "-c", script, "sh", *command],
            env=self._environ, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        own = os.stat("/proc/self/ns/net").st_ino
        deadline = time.monotonic() + PATIENCE_S
        while os.stat(f"/proc/{process.pid}/ns/net").st_ino == own:
            assert process.poll() is None and time.monotonic() < deadline, f"{name} did not start"
            time.sleep(0.02)
        return process

    def _inside(self, process: subprocess.Popen[bytes], command: str) -> None:
        enter = ["nsenter", "--target", str(process.pid), "--net", "--", *command.split()]
        subprocess.run(enter, check=True, capture_output=True, timeout=patient(20))


def head_command(cpus: int, resources: str = "{}") -> list[str]:
    """``ray start`` for the first machine, which is 10.77.0.1."""
    return [
        RAY, "start", "--head", "--block", "--node-ip-address=10.77.0.1", "--port=6379",
        f"--num-cpus={cpus}", f"--resources={resources}", "--object-store-memory=200000000",
        "--dashboard-host=127.0.0.1", "--disable-usage-stats", *AGENT_PORTS,
    ]  # fmt: skip


def worker_command(cpus: int, resources: str) -> list[str]:
    """``ray start`` for the others."""
    return [
        RAY, "start", "--block", "--address=10.77.0.1:6379", "--node-ip-address=ADDRESS",
        f"--num-cpus={cpus}", f"--resources={resources}", "--object-store-memory=200000000",
        "--disable-usage-stats", *AGENT_PORTS,
    ]  # fmt: skip


@contextmanager
def machines(folder: Path, environ: dict[str, str]) -> Iterator[Machines]:
    """A switch without machines; whatever is added ends with the block."""
    made = Machines(folder, environ)
    try:
        yield made
    finally:
        made.close()

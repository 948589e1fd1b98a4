"""The Ray cluster behind a command: start a private one, or join one, and leave nothing behind.

    with connect(num_engines=2) as cluster:      # a local cluster for this command alone
        ...
    with connect("10.0.0.5:6379") as cluster:    # somebody's cluster; a token is demanded

A local cluster demands Ray's token from whoever talks to it, keeps its object store small, and
hands its actors the variables that they need and none of the driver's others. Ray listens on loopback
alone there. Ray itself ends the processes of a local cluster when the thread that started them ends: that
is why only the main thread may start one.

Not here: what runs on the cluster (`rollouts.pool.pool`, `align.learner`), whether it fits
(`launch.cluster.preflight`), and submitting jobs (`launch.cluster.jobs.jobs`).
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from types import FrameType

from launch.cluster.local_ray.folder import latest_logs, ray_folder, sessions_folder
from launch.cluster.local_ray.start import start_patiently
from launch.cluster.local_ray.sweeper import swept
from rollouts.errors import RunError, UserError
from rollouts.machine.memory import shared_memory, total_memory
from rollouts.machine.object_store import store_bytes
from rollouts.machine.stopping import ended_by_sigterm
from rollouts.machine.variables import passed_on

GIB = 1024**3
PACKAGE_ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds the four packages, for the actors' import path."""

PROBE_TIMEOUT_S = 10.0
CLIENT_TRIES = 4
"""Number of tries to connect by Ray Client, all within the one deadline of a start."""
CLIENT = "ray://"
"""Scheme of Ray Client, whose driver is on no node. Every weight and every sample passes through one
process of the head node, so a driver on a node, or a job, is quicker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Cluster that this process has joined."""

    address: str
    """host:port of the cluster's control service."""
    local: bool
    """True when it was started here and ends with the context."""
    num_cpus: int
    """Logical CPUs, of all nodes. They bound how many actors fit, not what those may use."""


@contextmanager
def connect(
    address: str | None = None,
    *,
    num_engines: int = 1,
    num_cpus: int | None = None,
    custom: Mapping[str, float] | None = None,
    insecure: bool = False,
    keep: Sequence[str] = (),
    timeout_s: float = 120.0,
    weights: int = 0,
    note: Callable[[str], None] = lambda _: None,
) -> Iterator[Cluster]:
    """Join the cluster at ``address``, or start a local one; disconnect on the way out.

    Args:
        address: host:port, or ``auto`` for the one of RAY_ADDRESS, else the one that runs on this
            host. None reads RAY_ADDRESS too, and starts a local cluster when that is unset.
        num_engines: rollout engines that have to fit beside the learner, each on one logical CPU.
        num_cpus: logical CPUs of a local cluster; None is this host's, at least num_engines + 1.
        custom: resources of other names that a local cluster has.
        insecure: join a cluster on another host although Ray's authentication is off.
        keep: names of variables that actors of a local cluster see besides the harmless ones.
        timeout_s: how long joining, or the first attempt to start, may take.
        weights: bytes of one version of the weights as engines receive them; two fit a local store.
        note: told of what takes longer than it should.

    Raises:
        UserError: the address is malformed, unreachable, or would be joined without authentication.
        RunError: Ray did not start.
    """
    import ray

    if ray.is_initialized():
        raise RunError(
            "this process is already connected to a Ray cluster",
            remedy="leave the outer connect() first, or use the cluster it yields",
        )
    if address in (None, "", "auto"):
        address = os.environ.get("RAY_ADDRESS") or address or None
    if address is None or address == "local":
        init = _local_options(num_engines, num_cpus, custom or {}, weights)
    else:
        check_address(address, os.environ, insecure=insecure)
        init = {"address": address}
    local = init["address"] == "local"
    if local and threading.current_thread() is not threading.main_thread():
        raise RunError(
            "a local Ray cluster has to be started by the main thread",
            cause="Ray ends its processes together with the thread that started them",
        )
    secure_token_file(os.environ, create=local)
    with ended_by_sigterm() as end_on_sigterm, swept(local) as marks:
        try:
            with _actor_environment(keep, marks):
                info = _start(init, timeout_s, note) if local else _init(init, timeout_s)
            end_on_sigterm()
            cpus = int(ray.cluster_resources().get("CPU", 0))
            yield Cluster(address=str(info["gcs_address"]), local=local, num_cpus=cpus)
        finally:
            ray.shutdown()


def _local_options(
    num_engines: int, num_cpus: int | None, custom: Mapping[str, float], weights: int
) -> dict[str, object]:
    folder, shared = ray_folder(os.environ), shared_memory()
    return {
        **({} if folder is None else {"_temp_dir": str(folder)}),
        # Where there is no shared memory, files have to do.
        **({} if shared is not None else {"_plasma_directory": tempfile.gettempdir()}),
        "address": "local",
        "num_cpus": num_cpus or max(os.cpu_count() or 1, num_engines + 1),
        "resources": dict(custom),
        "object_store_memory": store_bytes(weights, memory=total_memory(), shared=shared),
        "include_dashboard": False,
    }


def _start(
    options: Mapping[str, object], first_s: float, note: Callable[[str], None]
) -> Mapping[str, object]:
    """Start a local Ray, with more time where the machine turns out to be busy."""
    # Ray gives its workers the lowest priority; engines that starve hold the learner up. And it starts a
    # worker on every CPU before anybody asks for one.
    system_config = {"worker_niceness": 0, "prestart_worker_first_driver": False}
    with _on_loopback():
        return start_patiently(
            lambda limit_s, limits: _init(
                {**options, "_system_config": system_config | dict(limits)}, limit_s
            ),
            first_s,
            note=note,
            logs=sessions_folder(os.environ),
        )


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let Ray take loopback for this node's address, so that all its processes listen there alone.

    It does so on systems on which it knows no clusters, and turns 127.0.0.1 into another address where it
    is given.
    """
    from ray._private import ray_constants

    variable, known = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    before = os.environ.get(variable)
    ray_constants.ENABLE_RAY_CLUSTER = False
    _apply({variable: "0"})
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = known
        _apply({variable: before})


def _init(options: Mapping[str, object], limit_s: float) -> Mapping[str, object]:
    """Call `ray.init` quietly, and raise whatever goes wrong as one error of ours."""
    try:
        with _deadline(limit_s):
            context = _connected(options)
    except RunError:
        raise
    except ConnectionError as error:
        raise UserError(
            f"no cluster answers at {options['address']!r}",
            where="--address",
            cause=next(iter(str(error).splitlines()), type(error).__name__),
            remedy="`ray start --head` starts one on this host; without --address Keel starts its own",
        ) from error
    except Exception as error:  # Ray raises a dozen unrelated types here.
        raise RunError(
            f"Ray did not start: {type(error).__name__}: {error}",
            where=f"ray.init(address={options['address']!r})",
            remedy=f"run `keel doctor`; Ray's own logs are in {latest_logs()}",
        ) from error
    # Ray Client's context knows nothing but the address that was asked for.
    info = getattr(context, "address_info", None)
    return {"gcs_address": options["address"]} if info is None else dict(info)


def _connected(options: Mapping[str, object]) -> object:
    """Call `ray.init` without its log lines; return its context.

    Ray Client's proxy looks at the server that it has just begun, and on a busy host that can be between
    two processes. The next one that it begins is as good, so an aborted connection is tried again.
    """
    import ray

    start = partial(ray.init, **options, log_to_driver=False, logging_level=logging.ERROR)
    for _ in range(CLIENT_TRIES - 1):
        with suppress(ConnectionAbortedError):
            return start()
    return start()


def check_address(address: str, environ: Mapping[str, str], *, insecure: bool) -> None:
    """Refuse an address that cannot work or that would be joined without authentication.

    Whoever reaches an unauthenticated cluster runs code on it (CVE-2023-48022), so a cluster on
    another host is joined with a token or after a deliberate ``insecure``.
    """
    if address == "auto":
        return
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if "://" in host:
        raise UserError(
            f"{address!r} is not a cluster address",
            where="--address",
            cause="it is the address of another of Ray's services, such as that of its jobs",
            remedy="`keel submit FILE --address http://<head node>:8265` runs a file as a job; "
            "keel run --address takes host:6379, auto, or ray://host:10001",
        )
    if not host or not port.isdigit():
        raise UserError(
            f"{address!r} is not host:port", where="--address", remedy="such as 10.0.0.5:6379"
        )
    host = host.strip("[]")
    if not insecure and not is_loopback(host) and not has_token(environ):
        raise UserError(
            f"the cluster at {address} would be joined without authentication",
            where="--address",
            cause="RAY_AUTH_MODE is not `token`, or there is no token",
            remedy="export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=<file with the cluster's "
            "token>; or pass --insecure-cluster on a network where everyone may run code",
        )
    _probe(host, int(port))


def is_loopback(host: str) -> bool:
    """Tell if the host is this one by name or number, without asking a name server."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def has_token(environ: Mapping[str, str]) -> bool:
    """Tell if Ray would use a token, and has one."""
    if environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return False
    return bool(environ.get("RAY_AUTH_TOKEN")) or token_file(environ).is_file()


def _probe(host: str, port: int) -> None:
    """Open one TCP connection: without it Ray waits a minute and then ends the whole process."""
    try:
        socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S).close()
    except OSError as error:
        raise UserError(
            f"nothing answers at {host}:{port} ({error})",
            where="--address",
            cause="the cluster is not up, or the port is another one than its GCS port",
            remedy="`ray status` on the head node prints the address; the default port is 6379",
        ) from error


def token_file(environ: Mapping[str, str]) -> Path:
    """Return the file in which Ray looks for the token of its authentication."""
    path = environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(path) if path else Path.home() / ".ray" / "auth_token"


def secure_token_file(environ: Mapping[str, str], *, create: bool) -> bool:
    """Make the token file private to its owner, and write one first if asked to; return True if it was
    open.

    Ray writes the file readable by everyone on the host; written here, it never is.
    """
    if environ.get("RAY_AUTH_TOKEN") or environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return False
    path = token_file(environ)
    try:
        if create and not path.exists() and not environ.get("RAY_AUTH_TOKEN_PATH"):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_once(path, secrets.token_hex(32))
        elif path.is_file() and path.stat().st_mode & 0o077:
            path.chmod(0o600)
            return True
    except OSError as error:
        if create and not os.path.exists(path):
            # A home that cannot be written: the token of a cluster of one's own need not outlive it.
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
            return False
        raise RunError(
            f"Ray's token file cannot be made private ({error})",
            where=str(path),
            remedy="chmod 600 it as its owner, or name another one in RAY_AUTH_TOKEN_PATH",
        ) from error
    return False


def _write_once(path: Path, token: str) -> None:
    """Write the token complete and private from the first moment its file exists; keep a file that was
    first."""
    staged = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(token)
        if not path.exists():
            os.link(staged, path)
    except FileExistsError:
        return
    finally:
        staged.unlink()


@contextmanager
def _actor_environment(
    keep: Sequence[str], marks: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Set `os.environ` to what Ray's actors inherit while Ray starts; restore it afterwards.

    What Ray itself sets in between (RAY_AUTH_MODE) stays: its later calls read it.
    """
    path = [str(PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    changes: dict[str, str | None] = {
        "PYTHONPATH": os.pathsep.join(path),
        "RAY_USAGE_STATS_ENABLED": "0",
        **(marks or {}),
    }
    passed = passed_on(os.environ, keep)
    changes |= {name: None for name in os.environ if name not in passed and name not in changes}
    before = {name: os.environ.get(name) for name in changes}
    _apply(changes)
    try:
        yield
    finally:
        _apply(before)


def _apply(changes: Mapping[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


class _Expired(BaseException):
    """Expiry of a deadline; not an `Exception`, since Ray's start catches those and goes on."""


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise `RunError` when the block takes longer; do nothing off the main thread, where no signal
    arrives.

    A signal and not a helper thread, because Ray's processes end with the thread that started
    them. A timer that was already running is wound on afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(_signal: int, _frame: FrameType | None) -> None:
        raise _Expired

    started = time.monotonic()
    handler = signal.signal(signal.SIGALRM, expire)
    outer_s, interval_s = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _Expired:
        raise RunError(
            f"Ray was not ready after {seconds:g} s",
            cause="the machine is short of CPU, memory or disk, or the cluster does not answer",
            remedy=f"run `keel doctor`; Ray's own logs are in {latest_logs()}",
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if outer_s:
            left_s = max(outer_s - (time.monotonic() - started), 0.001)
            signal.setitimer(signal.ITIMER_REAL, left_s, interval_s)

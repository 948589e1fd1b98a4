"""Memory that this process may use: of the machine, within its control groups and its own limits."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from rollouts.errors import UserError

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
SHM = Path("/dev/shm")
UNLIMITED = 1 << 60
"""Control groups of the first version write about this much where there is no limit."""


def total_memory() -> int:
    """Bytes that all processes here may use together: the machine's, or the control group's limit."""
    limits = [limit for limit, _ in cgroup_usage()]
    return min([int(_machine_memory().total), *limits])


def available_memory() -> int:
    """Bytes that are free now, within the limits of the control groups."""
    rooms = [limit - used for limit, used in cgroup_usage()]
    return max(0, min([int(_machine_memory().available), *rooms]))


def _machine_memory() -> Any:
    try:
        return psutil.virtual_memory()
    except OSError as error:
        raise UserError(
            f"the memory of this machine cannot be read ({error})",
            where="/proc/meminfo",
            cause="there is no /proc here, or it is hidden from this process; Ray and vLLM need it too",
            remedy="mount it: mount -t proc proc /proc",
        ) from error


def address_space() -> int | None:
    """Bytes of addresses that one process may have (``ulimit -v``); None: no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def shared_memory() -> int | None:
    """Bytes that are free in ``/dev/shm``; None where there is none."""
    try:
        stat = os.statvfs(SHM)
    except OSError:
        return None
    return stat.f_bavail * stat.f_frsize


def cgroup_usage(
    root: Path | None = None, membership: Path | None = None
) -> Iterator[tuple[int, int]]:
    """Limit and use in bytes of every control group that this process is in and that has a limit.

    Args:
        root: where control groups are mounted; None: the usual place.
        membership: the file that names this process's own; None: the kernel's.
    """
    root, membership = root or CGROUPS, membership or OWN_CGROUP
    for folder in _folders(root, membership):
        for limit_file, used_file in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _number(folder / limit_file), _number(folder / used_file)
            if limit is not None and used is not None and limit < UNLIMITED:
                yield limit, used


def _folders(root: Path, membership: Path) -> list[Path]:
    """The groups of this process, from its own up to the root; in a container the root is its own."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    found = [root, root / "memory"]
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        below = root / "memory" if controllers else root
        steps = [part for part in path.split("/") if part not in ("", "..")]
        found += [below.joinpath(*steps[: n + 1]) for n in range(len(steps))]
    return list(dict.fromkeys(found))


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None

"""Memory that this process may use, within its control groups and its own limits."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from ctypes import CDLL
from pathlib import Path
from typing import Any

import psutil

from rollouts.errors import UserError

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
SHM = Path("/dev/shm")
UNLIMITED = 1 << 60
"""Limit from which on a control group has none; groups of version 1 write a larger number then."""


def total_memory() -> int:
    """Return the bytes that all processes here may use: the machine's, or the control group's limit."""
    limits = [limit for limit, _ in cgroup_usage()]
    return min([int(_machine_memory().total), *limits])


def available_memory() -> int:
    """Return the bytes that are free now, within the limits of the control groups."""
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
    """Return the bytes of addresses that one process may have (``ulimit -v``); None without a limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def shared_memory() -> int | None:
    """Return the bytes that are free in ``/dev/shm``; None if there is no such folder."""
    try:
        stat = os.statvfs(SHM)
    except OSError:
        return None
    return stat.f_bavail * stat.f_frsize


def cgroup_usage(
    root: Path | None = None, membership: Path | None = None
) -> Iterator[tuple[int, int]]:
    """Yield limit and use in bytes of every control group of this process that has a limit.

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
    """List the groups of this process up to the root, which in a container is its own group."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    folders = [root, root / "memory"]
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        below = root / "memory" if controllers else root
        steps = [part for part in path.split("/") if part not in ("", "..")]
        folders += [below.joinpath(*steps[: n + 1]) for n in range(len(steps))]
    return list(dict.fromkeys(folders))


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def return_freed_memory() -> None:
    """Give memory that this process has freed back to the system, where the C library is glibc."""
    if (trim := getattr(CDLL(None), "malloc_trim", None)) is not None:
        trim(0)

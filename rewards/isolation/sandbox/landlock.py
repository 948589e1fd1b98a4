"""Landlock: a process gives up rights on files, ports and signals, for good and for its children.

A second wall inside a sandbox of namespaces, and one around a worker without a sandbox, where the kernel
has it (5.13 and later).
https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

from rewards.isolation.sandbox.limits import LIBC, checked

_CREATE, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_BLOCK = 1 << 11

_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Number of rights on files by version of the interface. A later version has at least 16."""
_BIND_AND_CONNECT = 0b11
_ABSTRACT_SOCKETS, _SIGNALS = 0b01, 0b10


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def version() -> int:
    """Return the version of the kernel's interface; 0 where there is none."""
    return max(0, int(LIBC.syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))))


def restrict(scratch: str) -> bool:
    """Read everywhere, write below ``scratch`` alone, no ports; False where the kernel cannot.

    Needs `limits.forgo_privileges` first. Raises `OSError` when the kernel refuses.
    """
    kernel = version()
    if kernel == 0:
        return False
    everything = (1 << _FILE_RIGHTS.get(kernel, 16)) - 1
    allowed = {
        "/": _EXECUTE | _READ_FILE | _READ_DIR,
        scratch: everything,
        "/dev/null": _READ_FILE | _WRITE_FILE,
    }
    _enter(kernel, everything, _BIND_AND_CONNECT, _ABSTRACT_SOCKETS | _SIGNALS, allowed)
    return True


def set_apart() -> bool:
    """Keep out of other processes' memory and variables, and from 6.12 on from signals to them.

    Whoever is in any Landlock domain can neither trace nor look into a process outside it, root included.
    This one loses only the right to make block devices. False where the kernel cannot.

    Needs `limits.forgo_privileges` first. Raises `OSError` when the kernel refuses.
    """
    kernel = version()
    if kernel == 0:
        return False
    _enter(kernel, _MAKE_BLOCK, 0, _SIGNALS, {})
    return True


def _enter(kernel: int, files: int, ports: int, scopes: int, allowed: Mapping[str, int]) -> None:
    """Give up rights on files but the ``allowed`` ones, and those on ports and beyond the scopes."""
    handled = (ctypes.c_uint64 * 3)(
        files, ports if kernel >= 4 else 0, scopes if kernel >= 6 else 0
    )
    size = ctypes.c_size_t(8 if kernel < 4 else 16 if kernel < 6 else 24)
    created = LIBC.syscall(_CREATE, ctypes.byref(handled), size, ctypes.c_uint32(0))
    rules = checked(int(created), "landlock_create_ruleset")
    try:
        for path, rights in allowed.items():
            _allow(rules, path, rights)
        checked(LIBC.syscall(_RESTRICT_SELF, rules, ctypes.c_uint32(0)), "landlock_restrict_self")
    finally:
        os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = _PathBeneath(allowed_access=rights, parent_fd=opened)
        result = LIBC.syscall(_ADD_RULE, rules, _PATH_BENEATH, ctypes.byref(rule), 0)
        checked(int(result), f"landlock_add_rule {path}")
    finally:
        os.close(opened)

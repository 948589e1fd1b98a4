"""A sandbox of Linux namespaces: a process without network, other processes, or files but a few.

The keeper enters a user and a process namespace (`enter`), so its next child is the first process of a
world of its own: when that one ends, the kernel ends all others in it. The child leaves the network and
moves into a root folder in memory where only what is listed exists, read-only, beside a scratch folder
(`confine`). Under root the worker becomes the user nobody, whom limits on processes bind.
See namespaces(7), user_namespaces(7), pivot_root(2), mount_setattr(2).
"""

from __future__ import annotations

import ctypes
import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rewards.isolation.sandbox.limits import LIBC, change_user, checked, forgo_capabilities
from rewards.isolation.setup import Setup

NOBODY = 65534
SCRATCH_MIB = 256

SYSTEM = (
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/usr",
    "/etc/alternatives",
    "/etc/group",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/sys/devices/system/cpu",
    "/dev/full",
    "/dev/null",
    "/dev/random",
    "/dev/urandom",
    "/dev/zero",
)
"""Folders that programs need to start. No folder of a person is among them."""

_NEW_NS, _NEW_UTS, _NEW_IPC = 0x00020000, 0x04000000, 0x08000000
_NEW_USER, _NEW_PID, _NEW_NET = 0x10000000, 0x20000000, 0x40000000
_NOSUID, _NODEV, _NOEXEC, _BIND, _REC, _PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x40000
_DETACH = 2
_SYS_MOUNT_SETATTR = 442
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_ATTR_RDONLY, _ATTR_NOSUID = 0x1, 0x2


def enter() -> None:
    """Give this process's children a user namespace and a process namespace. Raises `OSError`."""
    me, ready, go = os.getpid(), *os.pipe()
    helper = os.fork()
    if helper == 0:  # ids are mapped from outside: only there root may map a second one
        os.close(go)
        try:
            if os.read(ready, 1):
                _map_ids(me)
                os._exit(0)
        finally:
            os._exit(1)
    os.close(ready)
    checked(LIBC.unshare(_NEW_USER | _NEW_PID), "unshare user and process namespaces")
    os.write(go, b"1")
    os.close(go)
    if os.waitpid(helper, 0)[1] != 0:
        raise OSError("user ids could not be mapped into a user namespace")


def _map_ids(pid: int) -> None:
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        ids = f"0 0 1\n{NOBODY} {NOBODY} 1\n"
        users, groups = ids, ids
    else:
        Path(f"/proc/{pid}/setgroups").write_text("deny")
        users, groups = f"{user} {user} 1\n", f"{group} {group} 1\n"
    Path(f"/proc/{pid}/uid_map").write_text(users)
    Path(f"/proc/{pid}/gid_map").write_text(groups)


def confine(setup: Setup) -> None:
    """Leave the network and every file that is not listed. Raises `OSError`."""
    apart = _NEW_NS | _NEW_NET | _NEW_IPC | _NEW_UTS
    checked(LIBC.unshare(apart), "unshare files and network")
    _mount(None, "/", None, _REC | _PRIVATE)
    root = Path(setup.scratch)
    _mount("tmpfs", str(root), "tmpfs", _NOSUID | _NODEV, "size=4m,mode=0755")
    for path in shown(setup.visible):
        _show(path, root)
    scratch, proc, folder = (_inside(root, p) for p in (setup.scratch, "/proc", setup.folder))
    for mount_point in (scratch, proc, folder):
        mount_point.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # containers that mask their own /proc allow no new one
        _mount("proc", str(proc), "proc", _NOSUID | _NODEV | _NOEXEC)
    _protect(str(root), 0)
    size = f"size={SCRATCH_MIB}m,mode=0777"
    _mount("tmpfs", str(scratch), "tmpfs", _NOSUID | _NODEV, size)
    os.chdir(root)
    checked(LIBC.pivot_root(b".", b"."), "pivot_root")
    checked(LIBC.umount2(b".", _DETACH), "umount the old root")
    os.chdir(setup.folder)
    become_nobody()
    forgo_capabilities()


def become_nobody() -> None:
    """Continue as the user nobody if this process is root."""
    if os.geteuid() == 0:
        change_user(NOBODY, NOBODY)


def shown(visible: tuple[str, ...]) -> Iterator[str]:
    """Yield all paths that a sandbox can read: the system, Python, and ``visible``; none below another
    one."""
    python = (sys.prefix, sys.base_prefix, *sysconfig.get_paths().values())
    roots: list[str] = []
    for path in sorted({*SYSTEM, *python, *visible}, key=lambda path: path.count("/")):
        if os.path.exists(path) and not any(Path(path).is_relative_to(other) for other in roots):
            roots.append(path)
            yield path


def _inside(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _show(path: str, root: Path) -> None:
    """Mount one path of the machine below ``root``, read-only."""
    target = _inside(root, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if path in SYSTEM and os.path.islink(path) and not path.startswith("/etc/"):
        target.symlink_to(os.readlink(path))  # /lib is a link to usr/lib on most systems
        return
    if os.path.isdir(path):
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    _mount(os.path.realpath(path), str(target), None, _BIND | _REC)
    if not path.startswith("/dev/"):
        _protect(str(target), _AT_RECURSIVE)


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind, data)]
    result = LIBC.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3])
    checked(result, f"mount {target}")


def _protect(target: str, flags: int) -> None:
    """Make a mount read-only, and with `_AT_RECURSIVE` those below it."""
    attributes = (ctypes.c_uint64 * 4)(_ATTR_RDONLY | _ATTR_NOSUID, 0, 0, 0)
    result = LIBC.syscall(
        _SYS_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(target), flags,
        ctypes.byref(attributes), ctypes.c_size_t(ctypes.sizeof(attributes)),
    )  # fmt: skip
    checked(result, f"mount_setattr {target}")

"""A sandbox made by bubblewrap, where the kernel lets that program make one but not Keel itself.

https://github.com/containers/bubblewrap
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from typing import NoReturn

from rewards.isolation.sandbox.namespaces import SCRATCH_MIB, SYSTEM, shown
from rewards.isolation.setup import Setup


def installed() -> bool:
    """Whether there is such a program."""
    return shutil.which("bwrap") is not None


def command(setup: Setup) -> list[str]:
    """What to run in place of this process: bubblewrap, and the worker inside."""
    given = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--as-pid-1"]
    given += ["--cap-drop", "ALL", "--proc", "/proc", "--dev", "/dev"]
    for path in shown(setup.visible):
        if path.startswith("/dev/"):
            continue
        if path in SYSTEM and os.path.islink(path):
            given += ["--symlink", os.readlink(path), path]
        else:
            given += ["--ro-bind", os.path.realpath(path), path]
    given += ["--dir", setup.folder, "--size", str(SCRATCH_MIB * 2**20), "--tmpfs", setup.scratch]
    inside = replace(setup, visible=())
    return [
        *given,
        "--",
        sys.executable,
        "-P",
        "-m",
        "rewards.isolation.sandbox.inside",
        inside.dump(),
    ]


def become(setup: Setup) -> NoReturn:
    """Replace this process."""
    os.set_inheritable(setup.channel, True)
    os.execvp("bwrap", command(setup))

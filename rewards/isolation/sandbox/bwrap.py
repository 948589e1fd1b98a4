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
    """Tell if bubblewrap is installed."""
    return shutil.which("bwrap") is not None


def command(setup: Setup) -> list[str]:
    """Return the command to run in place of this process: bubblewrap, and the worker inside."""
    words = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--as-pid-1"]
    words += ["--cap-drop", "ALL", "--proc", "/proc", "--dev", "/dev"]
    for path in shown(setup.visible):
        if path.startswith("/dev/"):
            continue
        if path in SYSTEM and os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
        else:
            words += ["--ro-bind", os.path.realpath(path), path]
    words += ["--dir", setup.folder, "--size", str(SCRATCH_MIB * 2**20), "--tmpfs", setup.scratch]
    inside = replace(setup, visible=())
    return [
        *words,
        "--",
        sys.executable,
        "-P",
        "-m",
        "rewards.isolation.sandbox.inside",
        inside.dump(),
    ]


def become(setup: Setup) -> NoReturn:
    """Replace this process by bubblewrap."""
    os.set_inheritable(setup.channel, True)
    os.execvp("bwrap", command(setup))

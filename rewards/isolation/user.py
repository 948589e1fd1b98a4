"""User that a worker without a sandbox runs as, where Keel runs as root.

Root's files, and those of every other user, are out of reach of such a worker. What all users of the
machine can read, the network and other workers of the same user are not.
"""

from __future__ import annotations

import os
import pwd
import stat
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.imports import code_digest
from rewards.isolation.levels import Isolation
from rewards.isolation.sandbox import landlock, namespaces, sandbox
from rewards.plugins import plugins
from rollouts.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherUser:
    """User that a worker becomes."""

    name: str
    user: int
    group: int


NOBODY = OtherUser(name="nobody", user=namespaces.NOBODY, group=namespaces.NOBODY)
"""User where the campaign names none."""
PYTHON = (sys.prefix, sys.base_prefix, *sysconfig.get_paths().values())
"""Folders that hold this Python and its packages."""


def other_user(
    names: Iterable[str],
    isolation: Isolation,
    options: Mapping[str, Any],
    folder: Path,
    where: str | None = None,
) -> OtherUser | None:
    """Return the user that the workers of a reward become; None: they stay the one that runs Keel.

    Without a stated user, code that ships with Keel stays, and so does code that ``nobody`` cannot read.

    Args:
        names: the reward and those that it is made of.
        options: of the reward; existing paths among them must be readable.

    Raises:
        UserError: the campaign names a user that a worker cannot become here.
    """
    stated, me = isolation.user, pwd.getpwuid(os.geteuid()).pw_name if isolation.user else ""
    if isolation.level != "process" or (stated and stated == me):
        return None
    setting = f"{where}.user" if where else "user"
    if os.geteuid() != 0:
        if stated:
            raise UserError(
                f"a worker cannot become {stated!r}: Keel runs as {me!r}, and only root changes its user",
                where=setting,
                remedy="remove user, or take isolation: sandbox, which needs no other user",
            )
        return None
    names = list(names)
    if not stated and all(_ships(name, folder) for name in names):
        return None
    other = _user(stated, setting) if stated else NOBODY
    closed = closed_to(other, _needed(names, isolation, options, folder))
    if closed is None:
        return other
    if stated:
        raise UserError(
            f"the user {stated!r} cannot read {closed}",
            where=setting,
            cause="the reward's workers need it",
            remedy=f"open it, for example by chmod o+rX, or set user: {me}",
        )
    return None


def _user(name: str, setting: str) -> OtherUser:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise UserError(f"there is no user {name!r}", where=setting, remedy="create it") from None
    return OtherUser(name=name, user=entry.pw_uid, group=entry.pw_gid)


def description() -> str:
    """Describe what a worker without a sandbox is not kept from on this machine."""
    nobodys = os.geteuid() == 0 and not closed_to(NOBODY, filter(os.path.exists, PYTHON))
    whose = "those files that all users can read" if nobodys else "this user's files"
    apart = "" if landlock.version() else ", other processes' memory and variables (no Landlock)"
    return f"process alone reaches the network, {whose}{apart}"


def closed_to(user: OtherUser, paths: Iterable[str]) -> Path | None:
    """Return the first path, or folder above one, that a user cannot read or enter; None: there is none.

    Access lists beyond the mode are not looked at.
    """
    for path in map(Path, paths):
        real = path.resolve()
        for each in (*reversed(path.absolute().parents), *reversed(real.parents)):
            if not _allows(each.stat(), user, stat.S_IXOTH):
                return each
        if not _allows(real.stat(), user, stat.S_IROTH | stat.S_IXOTH * real.is_dir()):
            return real
    return None


def _allows(facts: os.stat_result, user: OtherUser, need: int) -> bool:
    """Tell if a mode gives a user the rights that ``need`` says for others."""
    shift = 6 if facts.st_uid == user.user else 3 if facts.st_gid == user.group else 0
    return facts.st_mode >> shift & need == need


def _ships(name: str, folder: Path) -> bool:
    """Tell if a reward is Keel's own code."""
    return ":" not in name and name not in plugins() and code_digest(name, folder) is None


def _needed(
    names: Iterable[str], isolation: Isolation, options: Mapping[str, Any], folder: Path
) -> list[str]:
    """List the paths that workers have to read."""
    values = [value for value in options.values() if isinstance(value, str)]
    values += [os.environ.get(name, "") for name in isolation.environment]
    paths = [str(folder), *PYTHON]
    paths += [path for name in names for path in sandbox.visible(name, folder)]
    paths += [value for value in values if os.path.isabs(value)]
    return [path for path in dict.fromkeys(paths) if os.path.exists(path)]

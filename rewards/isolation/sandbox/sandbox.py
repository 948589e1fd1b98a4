"""Sandbox that this machine can give, found by making one; and the files that it shows."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from functools import cache
from pathlib import Path

import rewards
import rollouts
from rewards.isolation.process import Plan, Worker, WorkerEnded
from rewards.isolation.sandbox import bwrap, landlock
from rewards.isolation.sandbox.needed import (
    declared_files,
    is_installed,
    needed_files,
    package_parts,
)
from rewards.isolation.setup import Provider
from rewards.plugins import plugins
from rollouts.errors import UserError


def provider(where: str | None = None) -> Provider:
    """Return the sandbox of this machine; raise a `UserError` with the reasons where there is none."""
    sandbox, reasons = _found()
    if sandbox is None:
        raise UserError(
            "isolation: sandbox is not available on this machine",
            where=where,
            cause="; ".join(reasons),
            remedy="allow unprivileged user namespaces or install bubblewrap; a reward that runs no "
            "code of others can take isolation: process",
        )
    return sandbox


def description() -> str:
    """Describe in a few words what a sandbox is made of here."""
    kernel = landlock.version()
    wall = f"Landlock {kernel}" if kernel else "no Landlock in this kernel"
    return f"{provider()}, {wall}: no network, no files, no other processes"


@cache
def _found() -> tuple[Provider | None, tuple[str, ...]]:
    """Return the first provider that a worker starts under, else None and the reasons."""
    candidates: tuple[Provider, ...] = ("namespaces", "bwrap")
    reasons = []
    for candidate in candidates:
        if candidate == "bwrap" and not bwrap.installed():
            reasons.append("bwrap: not installed")
            continue
        try:
            plan = Plan(
                reward=None, options={}, where=None, folder="/", memory_gib=None,
                sample_deadline_s=None, provider=candidate, visible=visible(None, Path("/")),
            )  # fmt: skip
            Worker(plan).end()
        except WorkerEnded as ended:
            reasons.append(f"{candidate}: {ended.failure.reason}")
        else:
            return candidate, ()
    return None, tuple(reasons)


def visible(
    reward: str | None, folder: Path, files: tuple[str, ...] = (), where: str | None = None
) -> tuple[str, ...]:
    """List what a worker has to read besides Python itself: Keel's rewards, and the code of this one.

    Of ``file.py:name`` the file and what it imports are shown, of ``pkg.mod:name`` the files of the
    outermost package, of an entry point those of its object. Hidden files never are, unless declared.

    Args:
        files: what the campaign declares beside them.
        where: place of the reward in the campaign file, for messages.
    """
    shown = [str(Path(package.__path__[0]).resolve()) for package in (rewards, rollouts)]
    shown += declared_files(files, folder, where)
    points = plugins().get(reward or "", ())
    origin = (points[0].value if points else reward or "").rpartition(":")[0]
    if origin.endswith(".py"):
        return (*shown, *needed_files(folder / origin, folder))
    spec = None
    if origin:
        with suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(origin.partition(".")[0])
    if spec is not None and spec.submodule_search_locations is not None:
        for location in spec.submodule_search_locations:
            package = Path(location).resolve()
            shown += map(str, [package] if is_installed(package) else package_parts(package))
    elif spec is not None and spec.origin and Path(spec.origin).exists():
        shown += needed_files(Path(spec.origin), folder)
    return tuple(dict.fromkeys(shown))

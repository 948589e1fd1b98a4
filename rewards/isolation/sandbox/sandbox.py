"""Which sandbox this machine can give, found by making one; and what of the machine it shows."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import rewards
import rollouts
from rewards.isolation.process import Plan, Worker, WorkerEnded
from rewards.isolation.sandbox import bwrap, landlock
from rewards.isolation.setup import Provider
from rewards.plugins import plugins
from rollouts.errors import UserError


def provider(where: str | None = None) -> Provider:
    """The sandbox of this machine; a `UserError` with the reasons where there is none."""
    found, reasons = _found()
    if found is None:
        raise UserError(
            "isolation: sandbox is not available on this machine",
            where=where,
            cause="; ".join(reasons),
            remedy="allow unprivileged user namespaces or install bubblewrap; a reward that runs no "
            "code of others can take isolation: process",
        )
    return found


def description() -> str:
    """What a sandbox is made of here, in a few words."""
    kernel = landlock.version()
    wall = f"Landlock {kernel}" if kernel else "no Landlock in this kernel"
    return f"{provider()}, {wall}: no network, no files, no other processes"


@cache
def _found() -> tuple[Provider | None, tuple[str, ...]]:
    candidates: tuple[Provider, ...] = ("namespaces", "bwrap")
    reasons = []
    for candidate in candidates:
        if candidate == "bwrap" and not bwrap.installed():
            reasons.append("bwrap: not installed")
            continue
        try:
            Worker(_nothing(candidate)).end()
        except WorkerEnded as ended:
            reasons.append(f"{candidate}: {ended.failure.reason}")
        else:
            return candidate, ()
    return None, tuple(reasons)


def _nothing(candidate: Provider) -> Plan:
    return Plan(
        reward=None, options={}, where=None, folder="/", memory_gib=None, sample_deadline_s=None,
        provider=candidate, visible=visible(None, Path("/")),
    )  # fmt: skip


def visible(reward: str | None, folder: Path) -> tuple[str, ...]:
    """What a worker has to read besides Python itself: Keel's rewards, and the code of this one.

    Of ``file.py:name`` the folder of the file is shown, of ``pkg.mod:name`` the outermost package, of an
    entry point that of its object.
    """
    ours = [str(Path(package.__path__[0]).resolve()) for package in (rewards, rollouts)]
    points = plugins().get(reward or "", ())
    place = (points[0].value if points else reward or "").rpartition(":")[0]
    if place.endswith(".py"):
        return (*ours, str((folder / place).parent))
    if place:
        ours += _package(place.partition(".")[0])
    return tuple(ours)


def _package(name: str) -> list[str]:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [str(path) for path in spec.submodule_search_locations]
    return [spec.origin] if spec.origin and Path(spec.origin).exists() else []

"""Facts about a reward from a worker that imports its code: nothing of a plug-in runs in this process.

The worker has an environment by an allow-list and a deadline, and whatever the import started ends with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewards.isolation.levels import Isolation
from rewards.isolation.process import Plan, Worker, WorkerEnded
from rewards.isolation.protocol import holds
from rewards.isolation.user import other_user
from rollouts.errors import UserError


def ask_facts(name: str, options: Mapping[str, Any], where: str | None) -> dict[str, Any]:
    """Return what `rewards.registry.facts_here` says of a reward in a process of its own.

    Raises:
        UserError: it cannot be imported, its process ended, or it did not answer in time.
    """
    folder = Path.cwd()
    user = other_user([name], Isolation(level="process"), options, folder, where)
    plan = Plan(
        reward=name,
        options={key: value for key, value in options.items() if holds(value)},
        where=where,
        folder=str(folder),
        user=None if user is None else (user.user, user.group),
        memory_gib=None,
        sample_deadline_s=None,
        describe=True,
    )
    try:
        worker = Worker(plan)
    except WorkerEnded as ended:
        raise UserError(
            f"reward {name!r} cannot be imported to read its facts",
            where=where,
            cause=ended.failure.reason,
            remedy="correct it: python -X faulthandler -c 'import ITS_MODULE' should end by itself",
        ) from None
    worker.end()
    return worker.about

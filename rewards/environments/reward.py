"""Reward that an environment gives the episode that a policy acted in it."""

from __future__ import annotations

from collections.abc import Sequence

from rewards.base import ShownCompletion
from rewards.environments.state import EndedEnvironment


def environment(
    completions: Sequence[ShownCompletion], environments: Sequence[EndedEnvironment | None]
) -> list[float | None]:
    """Return the environment's ``get_reward()`` at the end of the episode; abstain without one."""
    return [ended.get_reward() if ended is not None else None for ended in environments]

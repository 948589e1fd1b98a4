"""Environments of a suite whose answers are episodes: opened, held against its items, and hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config.episodes.rules import ENVIRONMENT_REWARD
from align.config.episodes.settings import ActingSettings
from align.config.rewards import RewardConfig
from align.settings import stated
from rollouts.types import Prompt

if TYPE_CHECKING:
    from rewards.environments.cluster.planned import PlannedEnvironments

DECIDING = {"turns", "tokens", "call_s", "episode_s", "observation_chars", "parser"}
"""Limits of an episode that change what happens in it; the others are resources of processes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteActing:
    """Environments that a suite's items are acted on in."""

    environments: PlannedEnvironments
    content: Mapping[str, Any]
    """Everything about them that decides an item's value."""


def acting_of(
    settings: ActingSettings,
    where: str,
    prompts: Sequence[Prompt],
    metric: Sequence[RewardConfig],
    context: int | None,
) -> SuiteActing | None:
    """Open the environments of a suite or round; None where its policy does not act.

    Args:
        where: place of the settings in the campaign file.
        context: tokens that engines read; None: any.

    Raises:
        UserError: code, a docstring, a type, a row or the reward is missing or wrong.
    """
    if not settings.acts:
        return None
    from rewards.environments.cluster.planned import open_planned
    from rewards.environments.describe import check_rewarded, check_rows

    plan = settings.environments_plan(where)
    environments = open_planned(plan, settings.episode.rules(context))
    if {reward.name for reward in metric} == {ENVIRONMENT_REWARD}:
        check_rewarded(plan, environments.described, turns=False)
    check_rows(plan, environments.described, prompts)
    return SuiteActing(environments=environments, content=acting_content(settings))


def acting_content(settings: ActingSettings) -> dict[str, Any]:
    """Return all that decides how a policy acts: tools and environments with their code, and limits."""
    return {
        "tools": [[stated(name), code_digest(name)] for name in settings.tools],
        "environments": {
            name: [stated(target), code_digest(target)]
            for name, target in settings.named_environments.items()
        },
        "episode": settings.episode.model_dump(mode="json", include=DECIDING),
    }


def code_digest(name: str) -> str | None:
    """Return the sha256 of the file that a name leads to; None where it names no file."""
    file = Path(name.rpartition(":")[0])
    if file.suffix != ".py" or not file.is_file():
        return None
    return hashlib.sha256(file.read_bytes()).hexdigest()

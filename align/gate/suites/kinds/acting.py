"""Environments of a suite whose answers are episodes: opened, held against its items, and hashed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from align.config.episodes.rules import ENVIRONMENT_REWARD, SUCCESS
from align.config.episodes.settings import ActingSettings
from align.config.rewards import RewardConfig
from align.settings import stated
from rewards.imports import code_digest
from rollouts.errors import UserError
from rollouts.types import Prompt

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig
    from rewards.environments.cluster.planned import PlannedEnvironments
    from rewards.environments.describe import DescribedEnvironment

DECIDING = {"turns", "tokens", "call_s", "episode_s", "observation_chars", "parser"}
"""Limits of an episode that change what happens in it; the others are resources of processes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteActing:
    """Environments that a suite's items are acted on in."""

    environments: PlannedEnvironments
    content: Mapping[str, Any]
    """Everything about them that decides an item's value."""
    is_placed: bool = False
    """True if they reserve room on nodes, which is counted for one suite at a time."""

    def release(self) -> None:
        """Give the room on nodes back after a measurement; the next one asks for it again."""
        if self.is_placed:
            self.environments.shutdown()


def acting_of(
    settings: ActingSettings,
    where: str,
    prompts: Sequence[Prompt],
    metric: Mapping[str, RewardConfig],
    context: int | None,
) -> SuiteActing | None:
    """Open the environments of a suite or round; None where its policy does not act.

    Args:
        where: place of the settings in the campaign file.
        metric: rewards by their places in it.
        context: tokens that engines read; None: any.

    Raises:
        UserError: code, a docstring, a type, a row or the reward is missing or wrong.
    """
    if not settings.acts:
        return None
    from rewards.environments.cluster.planned import open_planned
    from rewards.environments.describe import check_rows, check_turns

    plan = settings.environments_plan(where)
    environments = open_planned(plan, settings.episode.rules(context))
    check_turns(plan, environments.described, settings.episode.turns)
    check_rewards(environments.described, metric)
    check_rows(plan, environments.described, prompts)
    return SuiteActing(
        environments=environments,
        content=acting_content(settings),
        is_placed=plan.limits.bundle is not None,
    )


def placed_rewards(spec: RoundConfig, index: int) -> dict[str, RewardConfig]:
    """Return the rewards of a round by their places in the campaign file."""
    return {f"rounds.{index}.rewards.{i}": reward for i, reward in enumerate(spec.rewards)}


def check_rewards(
    described: Mapping[str, DescribedEnvironment], rewards: Mapping[str, RewardConfig]
) -> None:
    """Refuse rewards that no episode in some environments could give.

    Args:
        rewards: by their places in the campaign file.

    Raises:
        UserError: the method or the attribute that a reward reads is missing, or an option of ``success``
            is none that could be read.
    """
    from rewards.environments.describe import check_attribute, check_rewarded

    needing = []
    for where, reward in rewards.items():
        attribute = reward.options.get("attribute")
        if reward.name == SUCCESS:
            check_success(reward.options, f"{where}.options")
        if reward.name == SUCCESS and isinstance(attribute, str):
            check_attribute(described, attribute, f"{where}.options.attribute")
        elif reward.name in (ENVIRONMENT_REWARD, SUCCESS):
            needing.append(where)
    if needing and len(needing) == len(rewards):
        check_rewarded(described, needing[0], turns=False)


def check_success(options: Mapping[str, Any], where: str) -> None:
    """Refuse options of ``success`` that no episode could be measured with.

    Args:
        where: place of the options in the campaign file.

    Raises:
        UserError: names the option.
    """
    attribute, at_least = options.get("attribute"), options.get("at_least")
    if attribute is not None and not (isinstance(attribute, str) and attribute.isidentifier()):
        raise UserError(
            f"expected the name of a public attribute, got {attribute!r}",
            where=f"{where}.attribute",
            remedy="name an attribute that the environment sets, such as done",
        )
    is_number = isinstance(at_least, int | float) and not isinstance(at_least, bool)
    if at_least is not None and not (is_number and math.isfinite(at_least)):
        raise UserError(
            f"expected a number, got {at_least!r}",
            where=f"{where}.at_least",
            remedy="give the smallest reward of a success, such as 1",
        )
    if attribute is not None and at_least is not None:
        raise UserError(
            f"at_least is {at_least!r} and attribute is {attribute!r}, which is read instead of the reward",
            where=where,
            remedy="remove one of them",
        )


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

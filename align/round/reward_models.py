"""Rewards that name a reward model of the campaign itself: ``options: {model: round:NAME}``.

The name stays in the campaign file and in every hash; the folder behind it is looked up when a round
is planned or a suite measured, since the model may not exist before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from align.config.campaign import RewardConfig
from align.gate.suites.suites import Suite
from rollouts.errors import UserError
from rollouts.types import SnapshotId

ROUND = "round:"


def round_named(reward: RewardConfig) -> str | None:
    """Return the round whose reward model a reward uses; None for all others."""
    model = reward.options.get("model")
    if isinstance(model, str) and model.startswith(ROUND):
        return model.removeprefix(ROUND)
    return None


def resolved(
    rewards: Iterable[RewardConfig],
    models: Mapping[str, SnapshotId],
    folder_of: Callable[[SnapshotId], Path],
) -> tuple[RewardConfig, ...]:
    """Return the same rewards with folders in place of round names.

    Args:
        models: accepted reward-model rounds.

    Raises:
        UserError: a reward names a model that the gate did not accept.
    """
    with_folders = []
    for reward in rewards:
        name = round_named(reward)
        if name is not None:
            if name not in models:
                raise UserError(
                    f"the reward {reward.name!r} needs the reward model of round {name!r}, which was "
                    "not accepted",
                    where="rewards",
                    remedy=f"see why with keel status, and mend round {name!r} or name another model",
                )
            options = {**reward.options, "model": str(folder_of(models[name]))}
            reward = reward.model_copy(update={"options": options})
        with_folders.append(reward)
    return tuple(with_folders)


def measurable(
    suites: Sequence[Suite],
    models: Mapping[str, SnapshotId],
    folder_of: Callable[[SnapshotId], Path],
) -> list[Suite]:
    """Select suites whose reward models exist by now, able to find them. Their hashes stay as they are."""
    selected = []
    for suite in suites:
        needed_rounds = {
            name for reward in suite.metric if (name := round_named(reward)) is not None
        }
        if not needed_rounds:
            selected.append(suite)
        elif needed_rounds <= models.keys():
            selected.append(suite.with_metric(resolved(suite.metric, models, folder_of)))
    return selected

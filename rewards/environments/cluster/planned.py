"""Environments of one plan, wherever its workers are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from rewards.environments.cluster.placed import PlacedEnvironments
from rewards.environments.describe import DescribedEnvironment
from rewards.environments.environments import WorkerEnvironments
from rewards.environments.plan import EnvironmentsPlan
from rollouts.episodes.environment import Environments, EpisodeRules


class PlannedEnvironments(Environments, Protocol):
    """Environments that are opened and ended together."""

    plan: EnvironmentsPlan
    described: Mapping[str, DescribedEnvironment]
    """Facts about every environment, by its name."""

    @property
    def metrics(self) -> dict[str, float]:
        """Counts so far, for logs."""
        ...

    def shutdown(self) -> None:
        """End all processes. Episodes that are under way end with an error; a later one starts new ones."""
        ...


def open_planned(plan: EnvironmentsPlan, rules: EpisodeRules | None = None) -> PlannedEnvironments:
    """Open the environments of a plan: in workers on this machine, or on nodes of the cluster.

    Workers start with the first episode.

    Args:
        rules: of every episode; None: the defaults.

    Raises:
        UserError: one of them cannot be used, or a file that is to travel does not exist.
    """
    if plan.limits.bundle is None:
        return WorkerEnvironments(plan, rules)
    plan.travelling()
    return PlacedEnvironments(plan, rules)

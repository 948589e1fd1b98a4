"""Workers of environments that a campaign places on the nodes of a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from align.config.policy import ResourcesConfig

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig
    from align.config.episodes.settings import ActingSettings


class PlacedWorkers(NamedTuple):
    """Workers that are all alike."""

    resources: ResourcesConfig
    num: int


def placed_workers(config: CampaignConfig) -> list[PlacedWorkers]:
    """Return the most workers that may be on the nodes at one time.

    A round may replay all earlier ones in their own environments, and a suite is measured beside it.
    """
    counts: list[PlacedWorkers] = []
    rounds: list[ActingSettings] = [spec for spec in config.rounds if spec.acts]
    suites: list[ActingSettings] = [suite for suite in config.suites if suite.acts]
    measured = max((*suites, *rounds), key=_num_placed, default=None)
    for settings in [*rounds, *([] if measured is None else [measured])]:
        resources = settings.episode.resources
        if resources is None:
            continue
        before = next((each.num for each in counts if each.resources == resources), 0)
        counts = [each for each in counts if each.resources != resources]
        counts.append(PlacedWorkers(resources, before + settings.episode.workers))
    return counts


def _num_placed(settings: ActingSettings) -> int:
    return settings.episode.workers if settings.episode.resources is not None else 0

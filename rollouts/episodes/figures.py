"""Figures of a step's episodes, for its metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import get_args

from rollouts.types import EpisodeEnd, RolloutGroup


def episode_metrics(groups: Iterable[RolloutGroup]) -> dict[str, float]:
    """Return means over the episodes of some groups; empty where no completion acted.

    ``episodes/failed_calls`` is a share of the calls, ``episodes/observed`` one of the tokens,
    and ``episodes/end_answer`` and its like of the episodes.
    """
    completions = [c for group in groups for c in group.completions_G if c.episode is not None]
    episodes = [c.episode for c in completions if c.episode is not None]
    if not episodes:
        return {}
    count, calls = len(episodes), sum(episode.calls for episode in episodes)
    tokens = sum(len(c.token_ids) for c in completions)
    ends = Counter(episode.end for episode in episodes)
    return {
        "episodes/turns": sum(episode.turns for episode in episodes) / count,
        "episodes/calls": calls / count,
        "episodes/failed_calls": sum(e.failed_calls for e in episodes) / max(calls, 1),
        "episodes/observed": 1 - sum(c.num_sampled for c in completions) / max(tokens, 1),
        **{f"episodes/end_{end}": ends[end] / count for end in get_args(EpisodeEnd)},
    }

"""Several completions of one item as one value.

Repeats of an item are not more items: they are averaged before any test (Miller, arXiv 2411.00640,
section 3.2), and what went wrong in one of them is told of the item.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from rollouts.types import Completion, FinishReason, RolloutGroup, Score, ScoredGroup

Status = Literal["scored", "abstained", "failed"]
STATUSES: tuple[Status, ...] = ("failed", "abstained", "scored")
FINISHES: tuple[FinishReason, ...] = ("failed", "length", "stop")
"""The worst first; so are the statuses."""
SUCCESS = 1.0
"""Smallest reward of an environment that counts as a success."""


def checked(score: Score, value_range: tuple[float, float] | None) -> Score:
    """Return the score, or a failure where its value cannot be averaged.

    Raises:
        ValueError: the value lies outside the range that the metric promises.
    """
    if score.value is None:
        return score
    if not math.isfinite(score.value):
        return Score(value=None, status="failed", detail=f"the value is {score.value}")
    if value_range is not None and not value_range[0] <= score.value <= value_range[1]:
        raise ValueError(f"{score.value:g}, outside {value_range[0]:g} to {value_range[1]:g}")
    return score


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemScore:
    """Score of one item."""

    value: float | None
    """Mean over its completions; None where none has a score."""
    status: Status
    """The worst of its completions' statuses."""
    detail: str | None
    completion: Completion
    """The first, with the finish of the worst: cut where any was cut, failed where any failed."""


def merged(
    scored: Sequence[ScoredGroup], value_range: tuple[float, float] | None
) -> list[ItemScore]:
    """Return one score per item: the mean over its completions.

    A completion without a score counts as the worst of the suite.

    Raises:
        ValueError: a value lies outside the range that the metric promises; the item is named.
    """
    groups = [(group.group, _checked(group, value_range)) for group in scored]
    values = [score.value for _, scores_G in groups for score in scores_G]
    worst = min((0.0, *(value for value in values if value is not None)))
    return [_item(group.completions_G, scores_G, worst) for group, scores_G in groups]


def episode_figures(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Compute what stands beside the mean of a suite whose answers are episodes; empty for other answers.

    ``success`` is the share of episodes with a reward of at least `SUCCESS` among those that their
    environment rewards; the others are means over all episodes.
    """
    episodes = [c.episode for group in groups for c in group.completions_G if c.episode is not None]
    if not episodes:
        return {}
    figures = {
        "turns": fmean(episode.turns for episode in episodes),
        "calls": fmean(episode.calls for episode in episodes),
        "failed calls": fmean(episode.failed_calls for episode in episodes),
    }
    if rewards := [episode.reward for episode in episodes if episode.reward is not None]:
        figures = {"success": fmean(reward >= SUCCESS for reward in rewards), **figures}
    return figures


def _checked(scored: ScoredGroup, value_range: tuple[float, float] | None) -> list[Score]:
    try:
        return [checked(score, value_range) for score in scored.scores_G]
    except ValueError as error:
        prompt = scored.group.prompt
        where = f" ({prompt.location})" if prompt.location else ""
        raise ValueError(f"item {prompt.id!r}{where} got {error}") from None


def _item(
    completions_G: Sequence[Completion], scores_G: Sequence[Score], worst: float
) -> ItemScore:
    filled = [worst if score.value is None else score.value for score in scores_G]
    scored = any(score.value is not None for score in scores_G)
    statuses = {score.status for score in scores_G}
    finishes = {completion.finish_reason for completion in completions_G}
    finish = next(finish for finish in FINISHES if finish in finishes)
    return ItemScore(
        value=math.fsum(filled) / len(filled) if scored else None,
        status=next(status for status in STATUSES if status in statuses),
        detail=next((score.detail for score in scores_G if score.detail is not None), None),
        completion=replace(completions_G[0], finish_reason=finish),
    )

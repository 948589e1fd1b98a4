"""Age draw: the longer ago a prompt was last answered, the more often it comes up.

    weight    learner steps since the prompt was last answered, counted over all accepted rounds

A share ``floor`` of the draw is uniform. The mastery draw has the age as its second factor; alone it needs
no rewards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from align.config.replay.draws import AgeConfig
from align.data.replay.draws.base import WeightedDraw
from align.data.replay.history import Sight
from rollouts.types import Prompt


class AgeDraw(WeightedDraw[AgeConfig]):
    """Draw by age."""

    @property
    def floor(self) -> float:
        return self.config.floor

    def weights(
        self, pool: Sequence[Prompt], sights: Mapping[str, Sight], now: int
    ) -> dict[str, float]:
        return {prompt.id: age_of(sights.get(prompt.id), now) for prompt in pool}


def age_of(sight: Sight | None, now: int) -> float:
    """Return the learner steps since a prompt was answered, at least 1; all steps for one never seen."""
    return float(now + 1 if sight is None else max(now - sight.step, 1))

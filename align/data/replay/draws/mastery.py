"""Mastery draw: prompts that the policy answers less well, and has not seen for long, come up more often.

    weight    (1 - success) * age
    success   running mean of the prompt's scores, from 0 to 1
    age       learner steps since the prompt was last answered

A share ``floor`` of the draw is uniform, so nothing that is mastered is dropped for good. Problems that
were solved are lost again within one run, and the longer a repair waits, the more it costs: the repair
window of correct-set turnover, arXiv 2606.03087. Scores come from the rewards of the round that a prompt
belongs to, when that round trained and whenever the prompt is replayed. They choose prompts; they teach
only with ``replay.rewards``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from align.config.replay.draws import MasteryConfig
from align.data.replay.draws.age import age_of
from align.data.replay.draws.base import WeightedDraw, by_round
from align.data.replay.history import Sight
from rollouts.types import Prompt

UNKNOWN = 0.5
"""Success of a prompt that no reward has scored yet."""


class MasteryDraw(WeightedDraw[MasteryConfig]):
    """Draw by what is not mastered, times its age."""

    @property
    def floor(self) -> float:
        return self.config.floor

    def weights(
        self, pool: Sequence[Prompt], sights: Mapping[str, Sight], now: int
    ) -> dict[str, float]:
        success = {
            name: value
            for prompts in by_round(pool).values()
            for name, value in successes(prompts, sights).items()
        }
        return {p.id: (1.0 - success[p.id]) * age_of(sights.get(p.id), now) for p in pool}


def successes(prompts: Sequence[Prompt], sights: Mapping[str, Sight]) -> dict[str, float]:
    """Return the success of one round's prompts by id, from 0 to 1.

    Scores between 0 and 1 are taken as they are. If a round's scores leave that range, the range is widened
    to them and mapped to 0 to 1.
    """
    scores = {
        prompt.id: sight.score
        for prompt in prompts
        if (sight := sights.get(prompt.id)) is not None and sight.score is not None
    }
    low, high = min([0.0, *scores.values()]), max([1.0, *scores.values()])
    return {
        prompt.id: (scores[prompt.id] - low) / (high - low) if prompt.id in scores else UNKNOWN
        for prompt in prompts
    }

"""DAPO: GRPO with a wider upper clip, without groups of equal rewards, and with a length penalty.

    r'  = r + overlong_penalty * overlong_punishment(|y|)
    A_i = (r'_i - mean_G r') / (std_G r' + eps)
    L   = -1/N sum_t min(rho_t A, clip(rho_t, 1 - clip_low, 1 + clip_high) A),  clip_high > clip_low

A group whose rewards do not differ is drawn again, up to ``max_resamples`` times a step. Source: Yu et
al. 2025, arXiv 2503.14476: clip-higher eq. 10, dynamic sampling eq. 11, token mean eq. 12, soft overlong
punishment eq. 13, overlong filtering section 3.4. The paper has no KL term: leave ``anchors.new`` empty.

Assumes rewards about as large as the paper's, which are 1 and -1; scale ``overlong_penalty`` to others.
The length of an episode is that of what was sampled, without observations. A completion that the rubric
could not score has no advantage. Dynamic sampling compares the rubric's
rewards without the penalty: a group that differs only in length teaches nothing about the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field

from align.algorithms.base import LossAndMetrics, PolicyInputs
from align.algorithms.policy_gradient.advantages import has_signal
from align.algorithms.policy_gradient.clipping import clipped_mean
from align.algorithms.policy_gradient.outcome import GroupRelative
from align.algorithms.policy_gradient.turns import turn_credits
from align.algorithms.rows import Totals
from rollouts.types import Score, ScoredGroup

PART = "dapo/overlong"
"""Name of the punishment among the reward's parts."""


class DAPO(GroupRelative):
    """Decoupled clip and dynamic sampling policy optimisation."""

    name: Literal["dapo"] = "dapo"
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Distance below 1 beyond which a ratio has no gradient."""
    clip_high: Annotated[float, Field(gt=0)] = 0.28
    """Distance above 1 beyond which a ratio has no gradient."""
    max_resamples: Annotated[int, Field(ge=0)] = 3
    """Number of times that a step may draw new groups for those whose rewards are all equal."""
    overlong_penalty: Annotated[float, Field(ge=0)] = 1.0
    """Largest punishment for length, in units of the reward; 0 turns it off."""
    overlong_buffer: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Last share of ``max_tokens``, over which the punishment grows; in the paper 4,096 of 20,480."""
    filter_truncated: bool = False
    """Keep truncated completions out of the loss; their rewards stay in the group's mean."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Length with the full punishment, in tokens; None: ``sampling.max_tokens``."""

    def for_round(self, max_tokens: int) -> Self:
        return self if self.max_tokens else self.model_copy(update={"max_tokens": max_tokens})

    @property
    def resamples(self) -> int:
        return self.max_resamples

    def informative(self, scored: ScoredGroup) -> bool:
        if has_signal(super().advantages([scored])[0]):
            return True
        return self._by_turn and any(map(any, turn_credits([scored], self.compare)[0]))

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[list[float | None]]:
        shaped_PG = super().advantages([self._shaped(scored) for scored in groups])
        if not self.filter_truncated:
            return shaped_PG
        return [without_truncated(*pair) for pair in zip(groups, shaped_PG, strict=True)]

    def loss(self, inputs: PolicyInputs, totals: Totals) -> LossAndMetrics:
        return clipped_mean(inputs, self.clip_low, self.clip_high, totals.tokens)

    def _shaped(self, scored: ScoredGroup) -> ScoredGroup:
        """Subtract the penalty for length from the scores of a group."""
        if not self.overlong_penalty:
            return scored
        if self.max_tokens is None:
            raise ValueError("dapo: max_tokens is None; set it, or call for_round(max_tokens)")
        buffer = self.overlong_buffer * self.max_tokens
        scores_G = [
            punished(
                score,
                overlong_punishment(completion.num_sampled, self.max_tokens, buffer),
                self.overlong_penalty,
            )
            for completion, score in zip(scored.group.completions_G, scored.scores_G, strict=True)
        ]
        return replace(scored, scores_G=tuple(scores_G))


def overlong_punishment(length: int, max_tokens: int, buffer: float) -> float:
    """Compute the punishment: 0 up to ``max_tokens - buffer`` tokens, then linear to -1 at ``max_tokens``.

    Source: arXiv 2503.14476, eq. 13.

    >>> [overlong_punishment(length, 100, 20) for length in (80, 85, 100, 101)]
    [0.0, -0.25, -1.0, -1.0]
    """
    return max(min((max_tokens - buffer - length) / buffer, 0.0), -1.0)


def without_truncated(
    scored: ScoredGroup, advantages_G: Sequence[float | None]
) -> list[float | None]:
    """Return the advantages with None for truncated completions, which keeps them out of the loss.

    A completion that ends by itself at the very last token is not truncated.
    """
    return [
        None if completion.finish_reason == "length" else advantage
        for completion, advantage in zip(scored.group.completions_G, advantages_G, strict=True)
    ]


def punished(score: Score, punishment: float, weight: float) -> Score:
    """Add the punishment to a score as one more part; a score without a number stays without."""
    if score.value is None:
        return score
    return replace(
        score,
        value=score.value + weight * punishment,
        parts={**score.parts, PART: punishment},
        weights={**score.weights, PART: weight},
    )

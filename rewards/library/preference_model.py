"""Probability that an answer is preferred to another one, according to a reward model.

Bradley and Terry: P(answer is better than reference) = sigmoid(r(answer) - r(reference)), the model that
`rewards.library.reward_model` snapshots are trained under, on their raw scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rewards.base import ShownCompletion
from rewards.library.reward_model import reward_model
from rollouts.types import Message


def preference_model(
    prompts: Sequence[str | Sequence[Message]],
    completions: Sequence[ShownCompletion],
    reference: Sequence[Any],
    model: str | None = None,
    batch_size: int = 16,
) -> list[float | None]:
    """Score the probability, 0 to 1, that the completion beats the column ``reference``; 0.5 is a tie.

    The column holds an answer to the same prompt, such as an earlier snapshot's; None abstains.
    ``model`` and ``batch_size`` are those of ``reward_model``.
    """
    pairs = [
        (p, c, r) for p, c, r in zip(prompts, completions, reference, strict=True) if r is not None
    ]
    shown = [*(prompt for prompt, _, _ in pairs)] * 2
    answers = [*(answer for _, answer, _ in pairs), *(other for _, _, other in pairs)]
    scores = reward_model(shown, answers, model=model, batch_size=batch_size, normalise=False)
    margins = iter(score - other for score, other in
                   zip(scores[: len(pairs)], scores[len(pairs) :], strict=True))  # fmt: skip
    return [None if other is None else sigmoid(next(margins)) for other in reference]


def sigmoid(margin: float) -> float:
    """Compute 1 / (1 + exp(-margin)) without overflow."""
    return 0.5 * (1.0 + math.tanh(0.5 * margin))

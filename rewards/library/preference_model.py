"""Probability that an answer is preferred to another one, according to a reward model.

Bradley and Terry: P(answer is better than reference) = sigmoid(r(answer) - r(reference)), the model that
`rewards.library.reward_model` snapshots are trained under, on their raw scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rewards.base import ShownCompletion
from rewards.environments.state import EndedEnvironment
from rewards.library.reward_model import Shown, read_of, reward_model


def preference_model(
    prompts: Sequence[Shown],
    completions: Sequence[ShownCompletion],
    reference: Sequence[Any],
    model: str | None = None,
    batch_size: int = 16,
    reads: str = "episode",
    environments: Sequence[EndedEnvironment | None] | None = None,
) -> list[float | None]:
    """Score the probability, 0 to 1, that the completion beats the column ``reference``; 0.5 is a tie.

    The column holds an answer to the same prompt, such as an earlier snapshot's, as a text or as messages;
    None abstains. ``model``, ``batch_size`` and ``reads`` are those of ``reward_model``.
    """
    acted_in = environments or [None] * len(completions)
    rows = zip(prompts, completions, acted_in, reference, strict=True)
    # Where the completion is an episode both are read as chats, or their scores are of two kinds.
    pairs = [(*read_of(p, c, world, reads), r) for p, c, world, r in rows if r is not None]
    shown = [*(prompt for prompt, _, _ in pairs)] * 2
    answers = [answer for _, answer, _ in pairs]
    answers += [read_of(prompt, other, None, reads)[1] for prompt, _, other in pairs]
    scores = reward_model(shown, answers, model=model, batch_size=batch_size, normalise=False)
    margins = iter(score - other for score, other in
                   zip(scores[: len(pairs)], scores[len(pairs) :], strict=True))  # fmt: skip
    return [None if other is None else sigmoid(next(margins)) for other in reference]


def sigmoid(margin: float) -> float:
    """Compute 1 / (1 + exp(-margin)) without overflow."""
    return 0.5 * (1.0 + math.tanh(0.5 * margin))

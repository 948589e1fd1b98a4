"""Hand-made episodes: what acting in an environment leaves, without one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from rollouts.types import (
    Completion,
    Episode,
    Prompt,
    RolloutGroup,
    Score,
    ScoredGroup,
    Source,
    TokenSpan,
)


def episode(
    *pieces: Sequence[int], logprob: float = -1.0, finish: Any = "stop", **facts: Any
) -> Completion:
    """An episode of tokens that were sampled, observed, sampled and so on.

    Args:
        logprob: of every sampled token.
        facts: other fields of the `Episode`.
    """
    ends = list(accumulate(map(len, pieces)))
    observed = [TokenSpan(ends[i - 1], ends[i]) for i in range(1, len(pieces), 2)]
    sampled = sum(map(len, pieces[::2]))
    turns = facts.pop("turns", (len(pieces) + 1) // 2)
    messages = facts.pop("messages", ())
    return Completion(
        token_ids=tuple(token for piece in pieces for token in piece),
        logprobs_T=(logprob,) * sampled,
        text="done",
        finish_reason=finish,
        episode=Episode(observed=tuple(observed), messages=messages, turns=turns, **facts),
    )


def scored(
    *completions: Completion,
    values: Sequence[float | None],
    prompt_ids: tuple[int, ...] = (1, 2, 3),
    source: Source = "new",
    policy: str = "",
    **facts: Any,
) -> ScoredGroup:
    """A group of completions with their scores."""
    name = "-".join(map(str, prompt_ids))
    return ScoredGroup(
        group=RolloutGroup(
            prompt=Prompt(id=name, text=name, source=source, **facts),
            prompt_ids=prompt_ids,
            completions_G=completions,
            policy=policy,
            seed=0,
        ),
        scores_G=tuple(
            Score(value=value, status="abstained" if value is None else "scored")
            for value in values
        ),
    )

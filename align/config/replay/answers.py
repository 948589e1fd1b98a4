"""Settings of on-policy replay: answers of the newest accepted policy, which a round learns to repeat."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from align.settings import Settings


class AnswersConfig(Settings):
    """Answers of the round's parent to earlier rounds' prompts, the best of which are imitated."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Answers of one step, as a share of its completions. They come on top and cost no sampling in the
    step: each stored prompt is answered once, when the round begins."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the term in the loss, the mean negative log-likelihood of the answers' tokens."""
    by: Literal["reward", "confidence"] = "reward"
    """Score that answers are chosen by. ``reward``: of the round that the prompt belongs to;
    ``confidence``: mean log-probability of a token under the policy that answered."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of each round's answers that is kept: those with the best scores."""
    threshold: float | None = None
    """Smallest score that is kept; None keeps the best, however poor they are."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """Sampling temperature of the answers; a low one gives the answers that the policy is sure of."""

    @model_validator(mode="after")
    def _can_be_reached(self) -> Self:
        if self.by == "confidence" and self.threshold is not None and self.threshold >= 0:
            raise ValueError(
                f"threshold: {self.threshold:g} is above every confidence, which is a log-probability and "
                "so below 0; write a negative number such as -0.5"
            )
        return self

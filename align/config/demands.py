"""What a suite asks of a candidate besides its mean, and how its items count as evidence."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from align.settings import Settings
from rollouts.types import Sampling

Family = Literal["general", "instruction", "safety"]
"""Suites of different families are told apart and never averaged together."""

Share = Annotated[float, Field(gt=0, lt=1)]
StopText = Annotated[str, Field(min_length=1)]


def _texts(value: Any) -> Any:
    """Accept one stop text for a list of one."""
    return [value] if isinstance(value, str) else value


class AnswerSampling(Settings):
    """Sampling of answers that are measured or served, and not learned from."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    top_k: Annotated[int, Field(ge=-1)] = -1
    """Sample from so many of the likeliest tokens; -1 and 0: from all."""
    min_p: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Sample from tokens with at least this share of the likeliest one's probability."""
    stop: Annotated[tuple[StopText, ...], BeforeValidator(_texts)] = ()
    """Texts that end an answer, which is cut before the first of them."""

    @model_validator(mode="after")
    def _sampled(self) -> Self:
        if self.temperature == 0.0 and (name := self.changed("top_p", "top_k", "min_p")):
            raise ValueError(
                f"{name} is set and temperature is 0, which always takes the likeliest token; set "
                f"temperature above 0, or remove {name}"
            )
        return self

    def sampling(self, max_tokens: int) -> Sampling:
        """Return the request for answers of at most ``max_tokens`` tokens."""
        return Sampling(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k or -1,
            min_p=self.min_p,
            stop_texts=self.stop,
        )


class SuiteDemands(AnswerSampling):
    """Shared by the suites of capabilities and those of rounds."""

    family: Family = "general"
    """Reported apart from the other families."""
    best_margin: Annotated[float, Field(gt=0)] | None = None
    """Largest loss against the best snapshot so far; None: as much as the budget. The best of many equal
    snapshots is the luckiest: held to ``margin`` against it, candidates that change nothing are refused."""
    zero_tolerance: tuple[str, ...] | Literal["all"] = ()
    """Ids of items that must not fail once they passed (a value of 1 or more), under the parent or the
    anchor; ``all``: every item."""
    truncation_margin: Share | None = None
    """Largest rise of the share of answers cut at max_tokens, against the parent; None: ``margin`` as a
    share of the metric's range, 0.05 where that range is not known."""
    failure_margin: Share | None = None
    """The same of the share of answers that the metric could not score."""
    range: tuple[float, float] | None = None
    """Smallest and largest value the metric may return: another one stops the round. None: 0 and 1 for a
    shipped metric that has this range, else not checked."""
    samples: Annotated[int, Field(ge=1)] = 1
    """Completions per item, whose mean is the item's value: more are less noise, not more items."""
    cluster: str | None = None
    """Column that names what items have in common, such as their source: a verdict then rests on clusters,
    however alike the items of one are. None: items of prompts count by themselves, pairs and examples come
    in clusters by their prompt, windows by their document; ``item`` or ``window`` takes them one by one."""

    @model_validator(mode="after")
    def _demands(self) -> Self:
        if self.range is not None:
            low, high = self.range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(
                    f"range is {low:g} to {high:g}; give a smaller and a larger number"
                )
        if self.samples > 1 and self.temperature == 0.0:
            raise ValueError(
                f"samples is {self.samples} and temperature 0: all completions of an item would be the "
                "same; set temperature above 0, or samples to 1"
            )
        return self

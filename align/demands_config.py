"""What a suite asks of a candidate besides its mean, and how its items count as evidence."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from align.settings import Settings

Family = Literal["general", "instruction", "safety"]
"""Suites of different families are told apart and never averaged together."""

Share = Annotated[float, Field(gt=0, lt=1)]


class SuiteDemands(Settings):
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
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy."""
    samples: Annotated[int, Field(ge=1)] = 1
    """Completions per item, whose mean is the item's value: more are less noise, not more items."""
    cluster: str | None = None
    """Column that names what items have in common, such as their source: standard errors are then robust
    to items of one cluster being alike."""

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

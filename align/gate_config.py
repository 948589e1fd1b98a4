"""What a candidate is measured on and what it must not lose, as a campaign file says it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from align.prompts_config import Prompts
from align.reward_config import Reward
from align.settings import Name, Settings


class RoundSuiteConfig(Settings):
    """The suite an accepted round leaves behind: its own reward on held-out prompts."""

    prompts: Prompts | None = None
    """None: the ``eval`` split of a demo source. Files need their own held-out prompts."""
    items: Annotated[int, Field(ge=1)] = 1500
    margin: Annotated[float, Field(gt=0)] = 0.05
    """Largest loss a later round may cause against its parent or the best so far."""
    budget: Annotated[float, Field(gt=0)] | None = None
    """Largest loss over the whole campaign against this round's own snapshot; None: twice the margin."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """None: as in training."""


class SuiteConfig(Settings):
    """A capability every candidate is measured on: items with a metric, or held-out text."""

    name: Name
    prompts: Prompts | None = None
    metric: Reward | None = None
    """Scores each completion; any reward can be one."""
    text: str | None = None
    """A text file: the score is the mean logprob per token of its windows, in nats."""
    window: Annotated[int, Field(ge=8)] = 256
    """Tokens per item of a text suite."""
    items: Annotated[int, Field(ge=1)] = 1500
    """Items used; a source with fewer is an error."""
    margin: Annotated[float, Field(gt=0)] = 0.02
    """Largest loss against the parent or the best so far, in units of the metric."""
    budget: Annotated[float, Field(gt=0)] | None = None
    """Largest loss against the campaign's start; None takes ``gate.total_budget``."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """None takes ``defaults.sampling.max_tokens``."""
    role: Literal["gate", "watch"] = "gate"
    """``watch``: measured and shown, never decides."""

    @model_validator(mode="after")
    def _kind(self) -> Self:
        if (self.text is None) == (self.prompts is None):
            raise ValueError("a suite has either prompts (with a metric) or text; set exactly one")
        if (self.prompts is None) != (self.metric is None):
            raise ValueError("a suite over prompts needs a metric, and a text suite takes none")
        return self


class GateConfig(Settings):
    """When a candidate becomes production."""

    mode: Literal["enforce", "observe"] = "enforce"
    """``observe`` records the verdict and accepts all the same."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Chance, over the whole campaign, of accepting a loss as large as a margin."""
    campaign_rounds: Annotated[int, Field(ge=1)] = 10
    """Rounds that alpha is spread over. Declared, because looking more often costs certainty."""
    total_budget: Annotated[float, Field(gt=0)] = 0.03
    """Largest loss of a suite against the campaign's start, whatever the number of rounds."""
    min_gain: Annotated[float, Field(ge=0)] = 0.0
    """The target must be better than the parent by more than this."""

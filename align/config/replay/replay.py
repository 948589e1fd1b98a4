"""Settings of replay: the shares of a step that go to earlier rounds and to the general pool."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from align.config.data import Prompts
from align.config.replay.answers import AnswersConfig
from align.config.replay.draws import BalancedConfig, Draw
from align.config.replay.pretraining import Pretraining
from align.config.replay.synthesis import SynthesisConfig
from align.settings import Settings


class ReplayConfig(Settings):
    """Shares of a step's budget for prompts that are not the round's own."""

    past: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share for prompts of earlier accepted rounds."""
    draw: Draw = BalancedConfig()
    """Choice of the earlier rounds' prompts: ``balanced``, ``reservoir``, ``mastery`` or ``age``, or one of
    them with options."""
    general: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share for the general pool."""
    examples: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share for examples of earlier accepted rounds' files, learnt again by this round's own loss. Pairs
    serve rounds of pairs and of ratings, ratings those of ratings, demonstrations and texts each other.
    Only for rounds with ``data``; without such an earlier round the share goes to the round's own
    examples."""
    general_prompts: Prompts | None = None
    """Source of the general pool; None turns its share off."""
    general_answers: Literal["sampled", "stored"] = "sampled"
    """Origin of the answers to general prompts. ``sampled``: the policy answers, and the reverse KL acts on
    its answers. ``stored``: the campaign's start answers once, and the KL acts on those answers; they cost
    no sampling and no share of the budget."""
    general_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest stored answer, in tokens; None: as in training."""
    buffer: Annotated[int, Field(ge=0)] = 256
    """Number of prompts stored of each accepted round, without answers or labels; and as many examples of a
    round that learns from a file. 0 keeps nothing of the round's data."""
    samples_per_prompt: Annotated[int, Field(ge=1)] = 1
    """Completions of each replayed prompt. KL needs no group, so with 1 the budget buys the most distinct
    prompts."""
    rewards: bool = False
    """Also learn from the rewards of the rounds that past prompts belong to. Needs groups, so
    ``samples_per_prompt`` of at least 2."""

    synthesis: SynthesisConfig | None = None
    """Prompts that the newest accepted policy writes in place of those stored of earlier rounds; None: the
    stored ones are replayed."""
    answers: AnswersConfig | None = None
    """Answers of the newest accepted policy to earlier rounds' prompts, which are imitated; None: none."""
    pretraining: Pretraining | None = None
    """Texts whose likelihood is kept up beside the round's loss; None: none."""

    @property
    def likelihoods(self) -> dict[str, float]:
        """Weights of the terms that make replayed answers or texts likely, by the source of their rows."""
        terms = {"answers": self.answers, "texts": self.pretraining}
        return {source: term.weight for source, term in terms.items() if term is not None}

    @model_serializer(mode="wrap")
    def _without_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is not set: stores that are older than these settings have no such keys."""
        values: dict[str, Any] = dump(self)
        if self.draw == BalancedConfig():
            values.pop("draw", None)
        for name in ("synthesis", "answers", "pretraining"):
            if getattr(self, name) is None:
                values.pop(name, None)
        return values

    @model_validator(mode="after")
    def _budget(self) -> Self:
        shares, new = ["past", "general"], "prompts"
        if self.examples:
            shares, new = [*shares, "examples"], "examples"
        total = sum(getattr(self, name) for name in shares)
        if total >= 1:
            raise ValueError(
                f"{' + '.join(shares)} must leave room for new {new}, got {total}; lower one of the shares"
            )
        if not self.buffer and self.general_answers == "stored":
            raise ValueError(
                "general_answers is stored and buffer, the number of stored answers, is 0; raise buffer, "
                "or set general_answers to sampled"
            )
        if self.rewards and self.samples_per_prompt < 2:
            raise ValueError(
                "replay.rewards compares completions of one prompt, got samples_per_prompt 1; "
                "set samples_per_prompt to the group size, or rewards to false"
            )
        if self.synthesis is not None:
            self._without_rewards()
        return self

    def _without_rewards(self) -> None:
        """Raise ValueError if synthesised prompts, which have no columns for rewards, would be scored."""
        scoring = {
            "rewards": self.rewards,
            f"draw {self.draw.name}": self.draw.reads_scores,
            "answers by reward": self.answers is not None and self.answers.by == "reward",
        }
        if reason := next((name for name, scores in scoring.items() if scores), None):
            raise ValueError(
                "replay.synthesis writes prompts without the columns that rewards read, and replay."
                f"{reason} scores them; use draw age, answers by confidence, "
                "and rewards false, or remove synthesis"
            )

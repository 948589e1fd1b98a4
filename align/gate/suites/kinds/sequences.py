"""Suites whose items are given token sequences: what all of those share."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

from align.gate.overlap import Item
from align.gate.suites.sequences import Sequences, Spans, TokenPair, example_sequences
from align.gate.suites.suite import Suite
from rollouts.engines.protocol import RolloutEngine, ScoreRequest
from rollouts.errors import UserError
from rollouts.types import sampled_positions

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig
    from align.data.examples import Unit
    from rollouts.prompts import PromptEncoder
    from rollouts.types import Prompt

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceSuite(Suite, ABC):
    """A suite with as many token sequences for one item as for any other."""

    sequences: tuple[TokenPair, ...] = ()
    """Prompt and completion of what is scored. Those of an item stand together."""
    sequence_ids: tuple[str, ...] = ()
    """Names of the items."""
    sequence_places: tuple[str, ...] = field(default=(), compare=False)
    """File and line of every item; empty if they are not known."""
    sequence_clusters: tuple[str, ...] = field(default=(), compare=False)
    """Document or prompt of every item; empty: every item counts by itself."""
    observed: tuple[Spans, ...] = ()
    """Completion tokens of every sequence that no policy writes; empty: it writes all of them."""
    sequence_prompts: tuple[Prompt | None, ...] = field(default=(), compare=False)
    """Prompt of every item, None for a text; empty: all are texts."""

    @classmethod
    def of_examples(cls, spec: RoundConfig, index: int, examples: Sequence[Unit]) -> Self:
        """Make the suite of a round that learns from a file: the examples that it never sees."""
        suite = spec.suite
        return cls.of_sequences(
            spec, example_sequences(examples, suite.items, f"rounds.{index}.data", suite.cluster)
        )

    @classmethod
    def of_sequences(cls, spec: RoundConfig, sequences: Sequences, **fields: Any) -> Self:
        """Make the suite of a round from the sequences of its examples."""
        suite = spec.suite
        return cls(
            name=spec.name,
            role="gate",
            margin=suite.margin,
            budget=suite.budget if suite.budget is not None else 2 * suite.margin,
            target_of=spec.name,
            **sequences,
            **fields,
        )

    @property
    def item_ids(self) -> tuple[str, ...]:
        """Names of the items."""
        return self.sequence_ids

    @property
    def item_clusters(self) -> tuple[str, ...]:
        """Document or prompt of every item; empty if every item counts by itself."""
        return self.sequence_clusters

    @property
    def scores_texts(self) -> bool:
        """True: sequences are all it has."""
        return True

    @property
    def per_item(self) -> int:
        """Number of sequences of an item."""
        return len(self.sequences) // max(1, len(self.sequence_ids))

    @property
    def lengths(self) -> list[int]:
        """Number of completion tokens of every sequence that count."""
        return [len(positions) for positions in self._positions]

    @property
    def _positions(self) -> list[list[int]]:
        """Positions in the completion of the tokens that count, for every sequence."""
        observed = self.observed or [()] * len(self.sequences)
        return [
            sampled_positions(len(completion_ids), spans)
            for (_, completion_ids), spans in zip(self.sequences, observed, strict=True)
        ]

    def content(self) -> Mapping[str, Any]:
        """Return the sequences."""
        return {
            "sequences": self.sequences,
            **({"observed": self.observed} if self.observed else {}),
        }

    def texts(self, encoder: PromptEncoder) -> list[Item]:
        """Return the sequences of every item as texts."""
        texts = [
            encoder.decode((*prompt_ids, *answer_ids)) for prompt_ids, answer_ids in self.sequences
        ]
        size = self.per_item
        places = self.sequence_places or ("",) * len(self.sequence_ids)
        return [Item(texts[i * size : (i + 1) * size], at) for i, at in enumerate(places)]

    def chosen(self, places: Sequence[int]) -> dict[str, Any]:
        """Return the sequences at some places, with what is known of them."""
        size = self.per_item

        def at(column: Sequence[Value]) -> tuple[Value, ...]:
            return tuple(column[i] for i in places) if column else ()

        def sequences_at(column: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(each for i in places for each in column[i * size : (i + 1) * size])

        return {
            "sequences": sequences_at(self.sequences),
            "observed": sequences_at(self.observed),
            "sequence_ids": at(self.sequence_ids),
            "sequence_places": at(self.sequence_places),
            "sequence_clusters": at(self.sequence_clusters),
            "sequence_prompts": at(self.sequence_prompts),
        }

    def reduced(self, places: Sequence[int]) -> Suite:
        """Return the suite that is left of this one; no value depends on a sequence's place."""
        return replace(self, **self.chosen(places))

    def check_fit(self, encoder: PromptEncoder, max_model_len: int) -> None:
        """Raise UserError for a sequence that the context cannot hold."""
        # An engine scores a sequence by generating one token after it.
        longest = max((len(a) + len(b) for a, b in self.sequences), default=0)
        if longest + 1 > max_model_len:
            raise UserError(
                f"sequences of suite {self.name!r} are {longest} tokens long, the engines hold "
                f"{max_model_len}",
                where=self.name,
                remedy=f"set its window to {max_model_len - 1} or less",
            )

    def probe(self, encoder: PromptEncoder) -> tuple[int, ...]:
        """Return the first sequence."""
        prompt_ids, completion_ids = self.sequences[0]
        return (*prompt_ids, *completion_ids)

    def logprobs(self, engine: RolloutEngine, encoder: PromptEncoder) -> list[float]:
        """Return the log-likelihood of every completion under the engine's weights, in nats."""
        size, requests = self.per_item, []
        prompts = self.sequence_prompts or (None,) * len(self.sequence_ids)
        for index, prompt in enumerate(prompts):
            answers = self.sequences[index * size : (index + 1) * size]
            longest = max(len(completion_ids) for _, completion_ids in answers)
            for ids, completion_ids in answers:
                read = ids if prompt is None else encoder.reread(prompt, ids, longest)
                requests.append(ScoreRequest(prompt_ids=read, completion_ids=completion_ids))
        return [
            math.fsum(logprobs[position] for position in positions)
            for logprobs, positions in zip(engine.score(requests), self._positions, strict=True)
        ]

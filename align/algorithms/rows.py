"""Rows: prompts with one completion each, as token ids, that the learner learns from. Imports no torch.

A row's ``advantage`` says how it teaches: how much better it is than its peers (reward-driven
algorithms), +1 chosen and -1 rejected (preference), +1 (imitation). Its ``source`` says which anchors
hold it. Rows of one ``unit``, such as a pair, always go through the same forward pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rollouts.types import (
    Completion,
    RolloutGroup,
    SnapshotId,
    Source,
    TokenSpan,
    WeightVersion,
    sampled_positions,
)

Floats = tuple[float, ...]
RowSource = Source | Literal["answers", "texts"]
"""Class of a row: that of its prompt, or replayed answers and texts, which are made likely by a term of
their own."""
DATA = "data"
"""Value of ``policy`` in a row that was read from a file, so that no policy sampled it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One completion as the learner sees it. Per-token fields have an entry for each sampled token."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    """Tokens behind the prompt; those of an episode hold observations too."""
    observed: tuple[TokenSpan, ...] = ()
    """Completion tokens that no policy sampled: they are read, and nothing is learnt from them."""
    sampler_logprobs_T: Floats = ()
    """Log-probabilities of the engine that sampled the row, in nats; empty for a row of a file."""
    advantage: float | None
    """Weight of the row in the loss; None for a row that moves the policy only through KL terms."""
    source: RowSource
    owner: SnapshotId | None = None
    round: str | None = None
    policy: SnapshotId | WeightVersion = DATA
    """Weights that sampled the row."""
    stale: bool = False
    """True if other weights than the learner's sampled the row, or engines that compute other numbers."""
    unit: int | None = None
    """Number shared by the rows that belong together, such as a pair; None for a row on its own."""
    advantages_T: Floats | None = None
    """Advantage of each token; None if every token carries ``advantage``."""
    rewards_T: Floats | None = None
    """Reward of each token besides the score, such as those of an environment at the ends of turns; None if
    there are none."""
    start_logprobs_T: Floats | None = None
    """Log-probabilities of the learner when the batch came; None if it has not moved since."""
    reference_logprobs_T: Floats | None = None
    """Log-probabilities of the reference: the weighted mean over the anchors of new prompts."""
    values_T: Floats | None = None
    """Values of the critic when the batch came."""
    returns_T: Floats | None = None
    """Returns that the critic is trained to predict."""
    margin: float = 0.0
    """Difference by which the chosen row of a pair should beat the other, in units of the reward."""
    baseline: float = 0.0
    """Number of the whole batch that a loss subtracts, such as the KL estimate of KTO."""
    keep_weight: float = 1.0
    """Weight of the row in a loss's own term of retention."""
    teacher_prompt_ids: tuple[int, ...] | None = None
    """Prompt that a teacher reads instead of ``prompt_ids``; None if it reads the same."""

    @property
    def num_tokens(self) -> int:
        """Length of prompt and completion together."""
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def advantages(self) -> Floats:
        """Advantages of the tokens, or the one that all of them share; empty where nothing is taught."""
        return self.advantages_T or (() if self.advantage is None else (self.advantage,))

    @property
    def num_sampled(self) -> int:
        """Number of completion tokens that a policy sampled, or a file teaches."""
        return len(self.completion_ids) - sum(span.end - span.start for span in self.observed)

    @property
    def sampled_positions(self) -> list[int]:
        """Positions of those tokens in the completion."""
        return sampled_positions(len(self.completion_ids), self.observed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """The denominators of a mini-batch, over all its micro-batches and ranks."""

    tokens: int
    """Completion tokens that teach."""
    sequences: int
    """Completions that teach."""
    units: int
    """Pairs; a row without a unit counts as one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """All rows of one learner step, and the denominators of its means."""

    rows: tuple[Row, ...]
    metrics: dict[str, float] = field(default_factory=dict)
    """Counts taken while the rows were made, by metric name."""

    @property
    def totals(self) -> Totals:
        """Denominators over the rows that teach."""
        teaching = [row for row in self.rows if row.advantage is not None]
        return Totals(
            tokens=sum(row.num_sampled for row in teaching),
            sequences=len(teaching),
            units=len(units_of(teaching)),
        )

    @property
    def class_tokens(self) -> Counter[str]:
        """Completion tokens of each prompt class, the denominators of the KL terms."""
        counts: Counter[str] = Counter()
        for row in self.rows:
            counts[row.source] += row.num_sampled
        return counts

    def split(self, parts: int) -> list[Batch]:
        """Split into mini-batches of equal mix, whole units in turn within each prompt class.

        Fewer than ``parts`` mini-batches come back where there are fewer units.
        """
        units = sorted(units_of(self.rows), key=lambda unit: unit[0].source)
        shares = [units[part::parts] for part in range(parts)]
        return [
            Batch(rows=tuple(row for unit in share for row in unit)) for share in shares if share
        ]


def units_of(rows: Sequence[Row]) -> list[list[Row]]:
    """Group rows by their unit, in order of first appearance; a row without one is a group of its own."""
    units: dict[object, list[Row]] = {}
    for index, row in enumerate(rows):
        units.setdefault(("row", index) if row.unit is None else row.unit, []).append(row)
    return list(units.values())


def row_of(group: RolloutGroup, completion: Completion, advantage: float | None) -> Row:
    """Build the row of one completion of a group."""
    return Row(
        prompt_ids=group.prompt_ids,
        completion_ids=completion.token_ids,
        observed=completion.observed,
        sampler_logprobs_T=completion.logprobs_T,
        advantage=advantage,
        source=group.prompt.source,
        owner=group.prompt.owner,
        round=group.prompt.round,
        policy=group.policy,
    )


def spans_of(pairs: Iterable[Iterable[int]]) -> tuple[TokenSpan, ...]:
    """Return spans that were stored as pairs of numbers."""
    return tuple(TokenSpan(*pair) for pair in pairs)

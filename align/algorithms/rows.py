"""What the learner learns from: rows of token ids, each with how it teaches. Imports no torch.

A row teaches through its ``advantage`` (reward-driven algorithms: how much better than its peers;
preference algorithms: +1 chosen, -1 rejected; imitation: +1) and is held through its ``source`` (which
anchors apply). Rows of one ``unit``, such as a pair, always go through the same forward pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rollouts.types import Completion, RolloutGroup, SnapshotId, Source, WeightVersion

Floats = tuple[float, ...]
DATA = "data"
"""``policy`` of a row that nobody sampled: it was read from a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One completion as the learner sees it. Per-token fields have the completion's length."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    sampler_logprobs_T: Floats = ()
    """Of the engine that sampled it, nats; empty where nothing was sampled."""
    advantage: float | None
    """None: this row moves the policy only through its KL terms."""
    source: Source
    owner: SnapshotId | None = None
    round: str | None = None
    policy: SnapshotId | WeightVersion = DATA
    """The weights that sampled it."""
    stale: bool = False
    """Sampled by other weights than the learner's when the batch came."""
    unit: int | None = None
    """Rows with the same number belong together; None stands alone."""
    advantages_T: Floats | None = None
    """Where tokens differ; None: every token carries ``advantage``."""
    start_logprobs_T: Floats | None = None
    """Of the learner when the batch came; None: it has not moved since."""
    reference_logprobs_T: Floats | None = None
    """Weighted mean over the anchors of new prompts."""
    values_T: Floats | None = None
    """The critic's, when the batch came."""
    returns_T: Floats | None = None
    """What the critic learns."""
    margin: float = 0.0
    """Of a pair's chosen row: by how much its reward should beat the other's."""
    baseline: float = 0.0
    """A number of the whole batch that a loss subtracts, as KTO's KL does."""
    teacher_prompt_ids: tuple[int, ...] | None = None
    """What a teacher reads in place of the prompt; None: the same."""

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


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
    """What was counted while the rows were made."""

    @property
    def totals(self) -> Totals:
        teaching = [row for row in self.rows if row.advantage is not None]
        return Totals(
            tokens=sum(len(row.completion_ids) for row in teaching),
            sequences=len(teaching),
            units=len(units_of(teaching)),
        )

    @property
    def class_tokens(self) -> Counter[str]:
        """Completion tokens of each prompt class: KL is a mean over its class's own tokens."""
        counts: Counter[str] = Counter()
        for row in self.rows:
            counts[row.source] += len(row.completion_ids)
        return counts

    def split(self, parts: int) -> list[Batch]:
        """Mini-batches of equal mix: whole units, dealt out in turn within each prompt class."""
        units = sorted(units_of(self.rows), key=lambda unit: unit[0].source)
        dealt = [units[part::parts] for part in range(parts)]
        return [Batch(rows=tuple(row for unit in hand for row in unit)) for hand in dealt if hand]


def units_of(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that belong together, in order of first appearance."""
    units: dict[object, list[Row]] = {}
    for index, row in enumerate(rows):
        units.setdefault(("row", index) if row.unit is None else row.unit, []).append(row)
    return list(units.values())


def row_of(group: RolloutGroup, completion: Completion, advantage: float | None) -> Row:
    """One completion of a group as a row."""
    return Row(
        prompt_ids=group.prompt_ids,
        completion_ids=completion.token_ids,
        sampler_logprobs_T=completion.logprobs_T,
        advantage=advantage,
        source=group.prompt.source,
        owner=group.prompt.owner,
        round=group.prompt.round,
        policy=group.policy,
    )

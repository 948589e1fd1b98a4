"""From scored groups to tensors: one row per completion, padded on the right, split by a token budget.

Legend: ``_B`` rows, ``_T`` positions of a padded row, ``_N`` completion tokens of all rows in order.
Completion token ``n`` is predicted at the position before it; only those positions get logits, so
neither prompts nor padding ever cost a row of the vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from align.learner.losses import Algorithm
from rollouts.types import Completion, RolloutGroup, ScoredGroup, SnapshotId, Source, WeightVersion

MAX_PADDING = 1.25
"""Padded over real tokens of one forward pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One completion as the learner sees it."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    sampler_logprobs_T: tuple[float, ...]
    advantage: float | None
    """None: this row moves the policy only through its KL terms."""
    source: Source
    owner: SnapshotId | None
    round: str | None
    policy: SnapshotId | WeightVersion
    """The weights that sampled it."""

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """All rows of one learner step, and the denominators of its means."""

    rows: tuple[Row, ...]

    @property
    def num_advantage_tokens(self) -> int:
        return sum(len(r.completion_ids) for r in self.rows if r.advantage is not None)

    @property
    def num_advantage_rows(self) -> int:
        return sum(r.advantage is not None for r in self.rows)

    @property
    def class_tokens(self) -> Counter[str]:
        """Completion tokens of each prompt class: KL is a mean over its class's own tokens."""
        counts: Counter[str] = Counter()
        for row in self.rows:
            counts[row.source] += len(row.completion_ids)
        return counts


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """Rows of one forward pass, as tensors."""

    rows: tuple[Row, ...]
    tokens_BT: Tensor
    """Right-padded with 0; causal attention keeps padding out of every position that counts."""
    where_N: Tensor
    """Flat index into ``B * T`` of the position that predicts each completion token."""
    targets_N: Tensor
    rows_N: Tensor
    """Row of each completion token."""
    sampler_logprobs_N: Tensor

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch on another device."""
        return replace(
            self,
            **{
                name: getattr(self, name).to(device)
                for name in ("tokens_BT", "where_N", "targets_N", "rows_N", "sampler_logprobs_N")
            },
        )

    def select(self, chosen: Sequence[bool]) -> Tensor:
        """Mask over ``N`` of the tokens whose row is chosen."""
        return torch.tensor(chosen, dtype=torch.bool, device=self.rows_N.device)[self.rows_N]

    def tokens_of(self, rows: Sequence[int]) -> Tensor:
        """Indices into ``N`` of the completion tokens of some rows, row after row in this order."""
        counts = [len(row.completion_ids) for row in self.rows]
        ends = list(accumulate(counts))
        found = [token for b in rows for token in range(ends[b] - counts[b], ends[b])]
        return torch.tensor(found, device=self.rows_N.device)


def build_batch(
    groups: Iterable[ScoredGroup], algorithm: Algorithm, *, replay_rewards: bool
) -> Batch:
    """Rows of every usable completion, with the algorithm's advantages.

    Failed completions have no tokens and are left out. General prompts never carry an advantage, and
    past prompts only with ``replay_rewards``: by default KL alone retains them.
    """
    learning = {"new", "past"} if replay_rewards else {"new"}
    given = list(groups)
    learns = [scored for scored in given if scored.group.prompt.source in learning]
    advantages = dict(zip(map(id, learns), algorithm.advantages(learns), strict=True))
    rows = []
    for scored in given:
        group = scored.group
        advantages_G = advantages.get(id(scored), [None] * len(group.completions_G))
        for completion, advantage in zip(group.completions_G, advantages_G, strict=True):
            if completion.token_ids:
                rows.append(row_of(group, completion, advantage))
    return Batch(rows=tuple(rows))


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


def micro_batches(batch: Batch, max_tokens: int) -> Iterator[MicroBatch]:
    """Split a batch so that no forward pass holds more than ``max_tokens`` padded tokens.

    Rows are sorted by length, and a pass ends where its rows would be padded by more than a quarter:
    a few long rows must not stretch all short ones. A single row longer than the budget still gets its
    own pass.
    """
    pending: list[Row] = []
    real = 0
    for row in sorted(batch.rows, key=lambda r: r.num_tokens):
        padded = row.num_tokens * (len(pending) + 1)
        if pending and padded > min(max_tokens, MAX_PADDING * (real + row.num_tokens)):
            yield to_tensors(pending)
            pending, real = [], 0
        pending.append(row)
        real += row.num_tokens
    if pending:
        yield to_tensors(pending)


def to_tensors(rows: Sequence[Row]) -> MicroBatch:
    """Pad rows into one micro-batch. Nothing follows a row's last token, so it is no input."""
    width = max(row.num_tokens for row in rows) - 1
    inputs = [[*row.prompt_ids, *row.completion_ids[:-1]] for row in rows]
    padded = [tokens + [0] * (width - len(tokens)) for tokens in inputs]
    where: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    sampler: list[float] = []
    for b, row in enumerate(rows):
        first = b * width + len(row.prompt_ids) - 1
        where.extend(range(first, first + len(row.completion_ids)))
        targets.extend(row.completion_ids)
        owners.extend([b] * len(row.completion_ids))
        sampler.extend(row.sampler_logprobs_T)
    return MicroBatch(
        rows=tuple(rows),
        tokens_BT=torch.tensor(padded),
        where_N=torch.tensor(where),
        targets_N=torch.tensor(targets),
        rows_N=torch.tensor(owners),
        sampler_logprobs_N=torch.tensor(sampler),
    )

"""Tensors of rows: forward passes padded on the right, split by a token budget.

Legend: ``_B`` rows, ``_T`` positions of a padded row, ``_N`` sampled tokens of all rows' completions
in order. Sampled token ``n`` is predicted at the position before it; only those positions get logits, so
neither prompts nor padding ever cost a row of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from align.algorithms import Algorithm
from align.algorithms.micro_batch import MicroBatch
from align.algorithms.rows import Batch, Row, Totals, row_of, units_of
from align.learner.packing import pack
from align.learner.ranks.lanes import dealt_evenly
from rollouts.types import ScoredGroup

MAX_PADDING = 1.25
"""Padded over real tokens of one forward pass."""
MAX_PADDING_PACKED = 2.0
"""The same where attention alone sees the padding."""
PASS_TOKENS = 100
"""Tokens of a small model that take as long as starting a pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Denominators:
    """Numbers that the sums of one optimizer step are divided by, over all its passes and ranks."""

    totals: Totals
    class_tokens: Mapping[str, int]
    new_completions: int = 1
    """Number of rows of new prompts, at least 1."""

    @classmethod
    def of(cls, batch: Batch) -> Denominators:
        """Count a mini-batch."""
        new = sum(row.source == "new" for row in batch.rows)
        return cls(
            totals=batch.totals, class_tokens=batch.class_tokens, new_completions=max(new, 1)
        )


def build_batch(
    groups: Iterable[ScoredGroup],
    algorithm: Algorithm,
    *,
    replay_rewards: bool,
    examples: Sequence[Row] = (),
    rehearsal: Sequence[Row] = (),
) -> Batch:
    """Return the rows of everything a step has: what the algorithm learns from, and what KL alone holds.

    General prompts never teach, and past prompts only with ``replay_rewards``: by default KL alone
    retains them. Failed completions have no tokens and are left out.

    Args:
        examples: rows of a file, for algorithms that learn from one.
        rehearsal: replayed answers and texts, which no algorithm sees as rows that teach.
    """
    learning = {"new", "past"} if replay_rewards else {"new"}
    scored_groups = list(groups)
    taught = algorithm.rows([s for s in scored_groups if s.group.prompt.source in learning])
    untaught = [
        row_of(scored.group, completion, None)
        for scored in scored_groups
        if scored.group.prompt.source not in learning
        for completion in scored.group.completions_G
        if completion.token_ids
    ]
    rows = (*taught.rows, *algorithm.examples(examples), *untaught, *rehearsal)
    return Batch(rows=rows, metrics=taught.metrics)


def micro_batches(
    rows: Sequence[Row], max_tokens: int, *, packed: bool = False
) -> Iterator[MicroBatch]:
    """Yield the rows of `passes`, as tensors."""
    return map(to_tensors, passes(rows, max_tokens, packed=packed))


def even_passes(
    rows: Sequence[Row], max_tokens: int, lanes: int, *, packed: bool = False
) -> list[list[Row]]:
    """Cut rows into `passes` that keep several lanes busy for the same time: smaller ones where that
    shortens the longest lane."""
    budgets = [max_tokens * share // 4 for share in ((4,) if lanes == 1 else (4, 3, 2))]
    splits = [list(passes(rows, budget, packed=packed)) for budget in budgets]
    longest_lanes = []
    for split in splits:
        costs = list(map(cost, split))
        hands = dealt_evenly(costs, lanes)
        longest_lanes.append(max(sum(costs[index] for index in hand) for hand in hands))
    return splits[longest_lanes.index(min(longest_lanes))]


def cost(rows: Sequence[Row]) -> int:
    """Estimate the cost of a pass in tokens; each also has work that does not depend on them."""
    return PASS_TOKENS + sum(row.num_tokens for row in rows)


def passes(rows: Sequence[Row], max_tokens: int, *, packed: bool = False) -> Iterator[list[Row]]:
    """Split rows so that no forward pass holds more than ``max_tokens`` padded tokens.

    Units are sorted by length and stay whole, and a pass ends where its rows would be padded by too
    much: a few long rows must not stretch all short ones. A single unit longer than the budget still
    gets its own pass.

    Args:
        packed: the model will read the rows' `Packing`, so rows of one prompt stay neighbours.
    """
    units = units_of(rows)
    longest: dict[object, int] = {}
    for unit in units:
        longest[_shared(unit, packed)] = max(longest.get(_shared(unit, packed), 0), _width(unit))
    units.sort(
        key=lambda unit: (longest[_shared(unit, packed)], _shared(unit, packed), _width(unit))
    )
    most = MAX_PADDING_PACKED if packed else MAX_PADDING
    pending: list[Row] = []
    real = widest = 0
    for unit in units:
        size = sum(row.num_tokens for row in unit)
        width = max(widest, _width(unit))
        padded = width * (len(pending) + len(unit))
        if pending and padded > min(max_tokens, most * (real + size)):
            yield pending
            pending, real, width = [], 0, _width(unit)
        pending.extend(unit)
        real, widest = real + size, width
    if pending:
        yield pending


def _shared(unit: Sequence[Row], packed: bool) -> tuple[int, ...]:
    """Return the prompt that a unit may share with others."""
    return unit[0].prompt_ids if packed else ()


def _width(unit: Sequence[Row]) -> int:
    return max(row.num_tokens for row in unit)


def to_tensors(rows: Sequence[Row]) -> MicroBatch:
    """Pad rows into one micro-batch. Nothing follows a row's last token, so it is no input."""
    width = max(row.num_tokens for row in rows) - 1
    inputs = [[*row.prompt_ids, *row.completion_ids[:-1]] for row in rows]
    padded = [tokens + [0] * (width - len(tokens)) for tokens in inputs]
    where: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for b, row in enumerate(rows):
        first = b * width + len(row.prompt_ids) - 1
        positions = row.sampled_positions
        where.extend(first + position for position in positions)
        targets.extend(row.completion_ids[position] for position in positions)
        owners.extend([b] * len(positions))
    return MicroBatch(
        rows=tuple(rows),
        tokens_BT=torch.tensor(padded),
        where_N=torch.tensor(where),
        targets_N=torch.tensor(targets),
        rows_N=torch.tensor(owners),
        packing=pack(rows),
    )


def as_teachers_read(micro: MicroBatch) -> MicroBatch:
    """Return the same completions after the prompts that rows hold for their teacher."""
    read = [
        row if row.teacher_prompt_ids is None else replace(row, prompt_ids=row.teacher_prompt_ids)
        for row in micro.rows
    ]
    return to_tensors(read).to(micro.tokens_BT.device)


def by_row(values_N: Tensor, micro: MicroBatch) -> list[tuple[float, ...]]:
    """Cut a flat column into the rows it belongs to."""
    counts = [row.num_sampled for row in micro.rows]
    return [tuple(piece.tolist()) for piece in torch.split(values_N, counts)]

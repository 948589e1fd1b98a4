"""Rows that a round keeps likely by a term of their own: answers to earlier prompts, and texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

from align.algorithms.rows import DATA, Row, RowSource, row_of
from align.data.examples.stream import ExampleStream, Unit
from align.data.replay.dealing import total_before, whole
from rollouts.prompts import content_id
from rollouts.types import Completion, RolloutGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsed:
    """Rows of one class, and how many of them a step takes."""

    stream: ExampleStream
    rate: float
    """Rows of one step in the mean; fractions carry over from step to step."""

    def reseeded(self, seed: int) -> Rehearsed:
        """Return the same rows in another order."""
        return replace(self, stream=self.stream.reseeded(seed))

    def at(self, step: int) -> list[Row]:
        """Return the rows of a step; all rows come once before any comes again."""
        units = self.stream.at(total_before(self.rate, step), whole(self.rate, step))
        return [row for unit in units for row in unit.rows]


def rehearsed(units: Sequence[Unit], source: RowSource, rate: float, seed: int) -> list[Rehearsed]:
    """Return the rows of units as rows that no other loss and no anchor acts on; nothing without units."""
    marked = [
        replace(unit, rows=tuple(replace(row, source=source, advantage=None) for row in unit.rows))
        for unit in units
    ]
    return [Rehearsed(stream=ExampleStream(marked, seed), rate=rate)] if marked else []


def answer_units(groups: Iterable[RolloutGroup]) -> list[Unit]:
    """Return a unit of every answer, as if it were read from a file: its sampler no longer matters."""
    units = []
    for group in groups:
        for completion in group.completions_G:
            row = replace(row_of(group, completion, None), sampler_logprobs_T=(), policy=DATA)
            name = content_id(f"{group.prompt.id}/{completion.token_ids}")
            units.append(Unit(id=name, prompt=group.prompt, rows=(row,)))
    return units


def confidence(completion: Completion) -> float:
    """Return the mean log-probability of a token under the policy that answered, in nats."""
    return sum(completion.logprobs_T) / max(len(completion.logprobs_T), 1)


def best_answers(
    groups: Sequence[RolloutGroup],
    scores: Mapping[str, float],
    *,
    keep: float,
    threshold: float | None,
) -> list[RolloutGroup]:
    """Return the best answers to the prompts of each round, in the order of the groups.

    Args:
        groups: one answer to each prompt.
        scores: score of each answer by the id of its prompt; answers without a score are left out.
        keep: share of each round's answers that is kept at most, rounded up.
        threshold: smallest score that is kept; None keeps the best, however poor they are.
    """
    rounds: dict[str | None, list[RolloutGroup]] = {}
    for group in groups:
        if group.prompt.id in scores and group.completions_G[0].token_ids:
            rounds.setdefault(group.prompt.round, []).append(group)
    chosen: set[str] = set()
    for answered in rounds.values():
        most = ceil(keep * len(answered))
        ranked = sorted(answered, key=lambda group: -scores[group.prompt.id])[:most]
        chosen |= {
            group.prompt.id
            for group in ranked
            if threshold is None or scores[group.prompt.id] >= threshold
        }
    return [group for group in groups if group.prompt.id in chosen]

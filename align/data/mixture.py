"""Prompts that one step samples: the round's own, replayed ones and general ones, within one budget.

The budget is ``prompts_per_step * group_size`` completions whatever is replayed: replay replaces new
prompts and adds no sampling. Shares that are not whole numbers carry over, so over a round each share is
exact: with 128 completions and 5% the counts are 6, 6, 7, 6, 7, ...
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from align.algorithms.rows import Row
from align.config.campaign import ReplayConfig, SamplingConfig
from align.data.examples.stream import ExampleStream, Unit, rows_of
from align.data.replay.buffer import ReplayBuffer
from align.data.replay.dealing import (
    ROUNDS_PER_STEP,
    dealt,
    in_turn,
    run_of,
    total_before,
    whole,
)
from align.data.replay.draws import DRAWS
from align.data.replay.history import PromptHistory
from align.data.replay.rehearsal import Rehearsed
from rollouts.prompts import PromptStream
from rollouts.types import Prompt, RolloutGroup, ScoredGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """Prompts of one step, with the number of completions for each."""

    prompts: tuple[Prompt, ...]
    group_sizes: tuple[int, ...]
    stored: list[RolloutGroup]
    """Stored answers of the step, which cost no sampling."""
    examples: list[Row] = field(default_factory=list)
    """Rows of a file that the step learns from."""
    rehearsal: list[Row] = field(default_factory=list)
    """Replayed answers and texts that the step keeps likely, beyond its budget."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """Sources of a round's prompts; the draw of step ``n`` depends on the seed, ``n`` and the history."""

    new: PromptStream
    """Prompts of the round itself; a round with ``examples`` only measures drift on them."""
    past: ReplayBuffer
    general: PromptStream | None
    stored: Sequence[RolloutGroup]
    """Stored answers of the general pool, which replace sampled ones."""
    sampling: SamplingConfig
    replay: ReplayConfig
    seed: int
    examples: ExampleStream | None = None
    """Rows of a file, which replace new prompts for algorithms that learn from a file."""
    past_examples: Mapping[str, ExampleStream] = field(default_factory=dict)
    """Examples of earlier rounds by round name, which the step learns from beside its own."""
    rehearsal: Sequence[Rehearsed] = ()
    """Replayed answers and texts that steps keep likely, beyond their budget."""
    history: PromptHistory = field(default_factory=PromptHistory)
    """History of prompts, which grows as the round goes on; draws by mastery or age read it."""

    def reseeded(self, seed: int) -> Mixture:
        """Return a mixture of the same sources whose draws come in another order."""
        return replace(
            self,
            new=self.new.reseeded(seed),
            general=None if self.general is None else self.general.reseeded(seed),
            examples=None if self.examples is None else self.examples.reseeded(seed),
            past_examples={n: stream.reseeded(seed) for n, stream in self.past_examples.items()},
            rehearsal=[rows.reseeded(seed) for rows in self.rehearsal],
            seed=seed,
        )

    def draw(self, step: int) -> Draw:
        """Draw the prompts of step ``step``, counted from 0."""
        budget = self.sampling.budget
        singles = self.replay.samples_per_prompt
        past_share = self.replay.past if len(self.past) else 0.0
        sampled = self.general is not None and not self.stored
        general_share = self.replay.general if sampled else 0.0
        example_share = self.replay.examples if self.past_examples else 0.0
        new_share = 1.0 - past_share - general_share - example_share
        past = self._past(budget * past_share / singles, step)
        general = window(self.general, budget * general_share, step) if self.general else []
        examples: list[Row] = []
        new: list[Prompt] = []
        if self.examples is not None:
            rate = budget * new_share / self.examples.rows_per_unit
            units = self.examples.at(total_before(rate, step), whole(rate, step))
            examples = rows_of([*units, *self._past_examples(budget * example_share, step)])
        else:
            new = window(self.new, budget * new_share / self.sampling.group_size, step)
        stored_rate, n = budget * self.replay.general, len(self.stored)
        first = total_before(stored_rate, step)
        indices = range(first, first + whole(stored_rate, step)) if n else ()
        return Draw(
            prompts=(*new, *past, *general),
            group_sizes=(
                *[self.sampling.group_size] * len(new),
                *[singles] * len(past),
                *[1] * len(general),
            ),
            stored=[self.stored[index % n] for index in indices],
            examples=examples,
            rehearsal=[row for rows in self.rehearsal for row in rows.at(step)],
        )

    def spare(self, step: int, turn: int, count: int) -> Draw:
        """Draw ``count`` new prompts from another part of the stream, to replace some of the step's.

        Args:
            turn: number of the replacement within the step, from 1.
        """
        first = total_before(float(self.sampling.prompts_per_step), step)
        first += turn * len(self.new) // 2
        self.new.seek(first)
        prompts = tuple(self.new.take(count))
        sizes = (self.sampling.group_size,) * count
        return Draw(prompts=prompts, group_sizes=sizes, stored=[])

    def _past_examples(self, num_rows: float, step: int) -> list[Unit]:
        """Draw earlier rounds' units of one step, about ``num_rows`` rows, in turn from each round."""
        if not self.past_examples:
            return []
        rounds = tuple(self.past_examples)
        rate = num_rows / self.past_examples[rounds[0]].rows_per_unit
        run = 1 if len(rounds) <= ROUNDS_PER_STEP else run_of(rate)
        first = total_before(rate, step)
        return [
            unit
            for name, count in in_turn(rounds, rate, step, run).items()
            for unit in self.past_examples[name].at(
                dealt(first, rounds.index(name), len(rounds), run), count
            )
        ]

    def _past(self, rate: float, step: int) -> list[Prompt]:
        """Draw the replayed prompts of one step.

        Steps that are sampled ahead are drawn before the step before them is answered, so they never see
        that step, in a resumed round either.
        """
        draw = DRAWS[self.replay.draw.name](self.replay.draw, self.past, self.seed)
        ahead = 1 if self.sampling.max_staleness else 0
        sights = self.history.before(max(step - ahead, 0))
        return draw.take(rate, step, sights, self.history.start + step)

    def replayed_counts(self, groups: Sequence[ScoredGroup]) -> dict[str, float]:
        """Count the prompts that a step replayed of each earlier round, where the draw is not balanced."""
        if self.replay.draw.name == "balanced":
            return {}
        drawn = Counter(s.group.prompt.round for s in groups if s.group.prompt.source == "past")
        return {f"replay/{name}": float(drawn[name]) for name in self.past.entries}

    def meter_prompts(self, count: int) -> list[Prompt]:
        """Return ``count`` prompts of every kind, the same each time: new, general, of each past round."""
        streams = [s for s in (self.new, self.general) if s is not None]
        for stream in streams:
            stream.seek(0)
        past_prompts = [p for prompts in self.past.entries.values() for p in prompts[:count]]
        return [
            p for stream in streams for p in stream.take(min(count, len(stream)))
        ] + past_prompts


def window(stream: PromptStream, rate: float, step: int) -> list[Prompt]:
    """Return a stream's prompts of one step, which depend on the step number alone."""
    stream.seek(total_before(rate, step))
    return stream.take(whole(rate, step))

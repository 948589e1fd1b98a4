"""Several rewards as one score per completion: scored, abstained or failed.

    value = sum over the parts that scored of weight * normalised(value)

All parts abstained: the sample abstained. Any part failed: the sample failed, so that a broken
reward is never mistaken for a low one. A part with a gate must be passed before the others count; see
`rewards.combine`, `rewards.normalise`. Every part is called once for the groups that are handed over
together; failed completions are shown to no reward. Groups that belong together, those of one step, may
be handed over as they come: `Rubric.open`. The rubric decides nothing about failures: it counts them in
`Rubric.failures`, and who runs the round holds them to a budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from rewards.base import RewardFunction, RewardPart, Sample
from rewards.combine import SampleOutcomes, combine, failed
from rewards.failures import FailureLog
from rewards.isolation.levels import Isolation, isolation_of
from rewards.isolation.reward import IsolatedReward
from rewards.isolation.sandbox import sandbox
from rewards.library.gating import Gate
from rewards.logged import Logged
from rewards.pending import Clocks, LoopThread, PartCalls
from rewards.registry import find_reward
from rewards.signatures.signature import required_columns
from rollouts.errors import UserError, nearest
from rollouts.types import Completion, Prompt, RolloutGroup, ScoredGroup


class RewardLike(Protocol):
    """Fields of a reward's configuration that `build_rubric` requires. Those with a default are the
    fields of `Isolation`, ``normalise`` with its ``bounds``, and ``gate``."""

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def part(self) -> str | None: ...
    @property
    def options(self) -> Mapping[str, Any]: ...


def build_rubric(specs: Sequence[RewardLike], where: str = "rewards") -> Rubric:
    """Resolve every reward, or raise one `UserError` at ``<where>.<index>``."""
    parts: dict[str, RewardPart] = {}
    for index, spec in enumerate(specs):
        field = f"{where}.{index}"
        reward = find_reward(spec.name, field)
        isolation = isolation_of(spec, reward.level_with(spec.options, field), field)
        function: RewardFunction = (
            reward.load(spec.options, field)
            if isolation.level == "inline"
            else IsolatedReward(spec.name, spec.options, isolation, field)
        )
        name = spec.part or spec.name.rpartition(":")[2]
        if name in parts:
            raise UserError(
                f"two parts are named {name!r}",
                where=field,
                remedy="give one of them another `part`",
            )
        if not math.isfinite(spec.weight):
            raise UserError(f"weight {spec.weight} is not a finite number", where=f"{field}.weight")
        gate = getattr(spec, "gate", None)
        parts[name] = RewardPart(
            name=name,
            weight=float(spec.weight),
            function=function,
            options=dict(spec.options),
            normalise=getattr(spec, "normalise", "none"),
            bounds=getattr(spec, "bounds", None),
            gate=gate and Gate(at_least=gate.at_least, otherwise=gate.otherwise),
        )
    return Rubric(tuple(parts.values()))


class Rubric:
    """A weighted sum of named rewards.

    Attributes:
        failures: what could not be scored so far.
    """

    def __init__(self, parts: Sequence[RewardPart]) -> None:
        self.parts = tuple(parts)
        if not self.parts or len({part.name for part in self.parts}) < len(self.parts):
            raise ValueError("a rubric has at least one part, and every part its own name")
        self.weights = {part.name: part.weight for part in self.parts}
        self.failures = FailureLog()
        self._logged = Logged()
        self._loop = LoopThread()

    @property
    def metrics(self) -> dict[str, float]:
        """Mean of what the parts gave ``log_metric`` in the last step, ``<part>/<name>``, and how the
        workers of those in processes of their own did."""
        return self._logged.metrics

    @property
    def extras(self) -> dict[str, list[Any]]:
        """Values that the parts gave ``log_extra`` in the last step, by ``<part>/<column>``."""
        return dict(self._logged.extras)

    def check_columns(self, prompts: Sequence[Prompt], where: str | None = None) -> None:
        """Raise a `UserError` for the first prompt without a column that a reward needs."""
        for part in self.parts:
            for column in required_columns(part):
                bare = next((p for p in prompts if column not in p.columns), None)
                if bare is not None:
                    columns = sorted(bare.columns)
                    raise UserError(
                        f"reward {part.name!r} needs the column {column!r}, "
                        f"which {bare.label} does not have",
                        where=where,
                        remedy=nearest(column, columns)
                        if columns
                        else "add the column to the data",
                    )

    def score(self, groups: Sequence[RolloutGroup], trainer_state: Any = None) -> list[ScoredGroup]:
        """Score every completion of every group, in the same order."""
        pending = self.open(trainer_state)
        pending.add(dict(enumerate(groups)))
        return list(pending.result().values())

    def open(self, trainer_state: Any = None, *, replacements: bool = False) -> PendingScores:
        """Begin a step whose groups are handed over as they come.

        Args:
            replacements: they stand in for groups of the same step: what is logged is added to it, and
                failures are counted apart.
        """
        return PendingScores(rubric=self, trainer_state=trainer_state, replacements=replacements)

    def ask(
        self, groups: Sequence[RolloutGroup], trainer_state: Any, clocks: Clocks
    ) -> PartCalls | None:
        """Put the completions of some groups to all parts; None: there is nothing to ask."""
        answered = [
            (Sample(prompt=group.prompt, completion=completion), index)
            for index, group in enumerate(groups)
            for completion in sampled(group)
        ]
        if not answered:
            return None
        samples_B, group_B = [sample for sample, _ in answered], [index for _, index in answered]
        return PartCalls(self.parts, samples_B, group_B, trainer_state, self._loop, clocks)

    def finish(
        self, batches: Sequence[GroupBatch], *, replacements: bool
    ) -> dict[int, ScoredGroup]:
        """Collect the scores behind a `PendingScores`: wait, count failures, keep what was logged."""
        if not replacements:
            self._logged = Logged()
        scored: dict[int, ScoredGroup] = {}
        for batch in sorted(batches, key=lambda batch: min(batch.groups, default=0)):
            if batch.calls is not None:
                outcomes = batch.calls.outcomes()
                self.failures.record(outcomes, replacements=replacements)
                self._logged.merge(batch.calls.logged)
                rows = zip(*outcomes.values(), strict=True)
                answers = iter([dict(zip(outcomes, row, strict=True)) for row in rows])
                extras = iter(batch.calls.extras_B())
            else:
                answers, extras = iter(()), iter(())
            for index, group in batch.groups.items():
                scored[index] = self._scored(group, answers, extras)
        return dict(sorted(scored.items()))

    def isolation_lines(self) -> list[str]:
        """Describe the isolation of every part, for the person who starts a run."""
        lines = [part_isolation(part).line(part.name) for part in self.parts]
        if any(part_isolation(part).level == "sandbox" for part in self.parts):
            lines.append(f"sandbox: {sandbox.description()}")
        return lines

    def close(self, deadline_s: float = 5.0) -> None:
        """End the worker processes, busy ones after ``deadline_s``. Scoring again would start new ones."""
        for part in self.parts:
            if isinstance(part.function, IsolatedReward):
                part.function.pool.close(deadline_s)

    def _scored(
        self,
        group: RolloutGroup,
        answers: Iterator[SampleOutcomes],
        extras: Iterator[dict[str, Any]],
    ) -> ScoredGroup:
        """Return a group with the next scores; completions that were never had get none."""
        scores = iter(combine(self.parts, [next(answers) for _ in sampled(group)]))
        return ScoredGroup(
            group=group,
            scores_G=tuple(
                failed(self.weights, f"no completion: {c.detail or 'the rollout failed'}")
                if c.finish_reason == "failed"
                else replace(next(scores), extras=next(extras))
                for c in group.completions_G
            ),
        )


def sampled(group: RolloutGroup) -> list[Completion]:
    """List the completions that a reward can be shown."""
    return [c for c in group.completions_G if c.finish_reason != "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupBatch:
    """Groups that were handed over together."""

    groups: Mapping[int, RolloutGroup]
    """Groups by their place in the step."""
    calls: PartCalls | None
    """Calls to the parts; None where there is nothing to score."""


@dataclass(slots=True, kw_only=True)
class PendingScores:
    """Groups of one step that are being scored."""

    rubric: Rubric
    trainer_state: Any = None
    replacements: bool = False
    _batches: list[GroupBatch] = field(default_factory=list)
    _clocks: Clocks = field(default_factory=dict)
    _scored: dict[int, ScoredGroup] | None = None

    def add(self, groups: Mapping[int, RolloutGroup]) -> None:
        """Begin to score more groups, by their place in the step.

        Parts in processes of their own and async parts work on until `result`; sync inline parts are done
        when this returns.
        """
        calls = self.rubric.ask(list(groups.values()), self.trainer_state, self._clocks)
        self._batches.append(GroupBatch(groups=dict(groups), calls=calls))

    def result(self) -> dict[int, ScoredGroup]:
        """Wait; return one `ScoredGroup` per group, in the order of their places."""
        if self._scored is None:
            self._scored = self.rubric.finish(self._batches, replacements=self.replacements)
        return self._scored


def part_isolation(part: RewardPart) -> Isolation:
    """Return the isolation of one part."""
    function = part.function
    return function.isolation if isinstance(function, IsolatedReward) else Isolation()

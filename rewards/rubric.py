"""Several rewards as one score per completion: scored, abstained or failed.

    value = sum over the parts that scored of weight * value

All parts abstained: the sample abstained. Any part failed: the sample failed, so that a broken
reward is never mistaken for a low one. Every part is called once for all groups together; failed
completions are shown to no reward. The rubric decides nothing about failures: it counts them in
`Rubric.failures`, and who runs the round holds them to a budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rewards.base import RewardFunction, RewardPart, Sample
from rewards.call import Failure, Outcome
from rewards.failures import FailureLog
from rewards.isolation import sandbox
from rewards.isolation.levels import Isolation, isolation_of
from rewards.isolation.reward import IsolatedReward
from rewards.loop import LoopThread
from rewards.pending import Questions
from rewards.registry import REWARDS, load_reward
from rewards.signature import required_columns
from rollouts.errors import UserError, nearest
from rollouts.types import Completion, Prompt, RolloutGroup, Score, ScoredGroup


class RewardLike(Protocol):
    """What `build_rubric` reads of a reward's configuration."""

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
        place = f"{where}.{index}"
        function = _function(spec, place)
        name = spec.part or spec.name.rpartition(":")[2]
        if name in parts:
            raise UserError(
                f"two parts are named {name!r}",
                where=place,
                remedy="give one of them another `part`",
            )
        if not math.isfinite(spec.weight):
            raise UserError(f"weight {spec.weight} is not a finite number", where=f"{place}.weight")
        parts[name] = RewardPart(
            name=name, weight=float(spec.weight), function=function, options=dict(spec.options)
        )
    return Rubric(tuple(parts.values()))


def _function(spec: RewardLike, where: str) -> RewardFunction:
    """The function itself, or its stand-in where it runs in processes of its own."""
    isolation = isolation_of(spec, REWARDS, where)
    if isolation.level == "inline":
        return load_reward(spec.name, spec.options, where)
    return IsolatedReward(spec.name, spec.options, isolation, where)


class Rubric:
    """A weighted sum of named rewards.

    Attributes:
        failures: what could not be scored so far.
        metrics: mean of what the parts gave ``log_metric`` in the last `score`, ``<part>/<name>``.
        extras: what they gave ``log_extra`` in the last `score`, ``<part>/<column>``.
    """

    def __init__(self, parts: Sequence[RewardPart]) -> None:
        self.parts = tuple(parts)
        if not self.parts or len({part.name for part in self.parts}) < len(self.parts):
            raise ValueError("a rubric has at least one part, and every part its own name")
        self.weights = {part.name: part.weight for part in self.parts}
        self.failures = FailureLog()
        self.metrics: dict[str, float] = {}
        self.extras: dict[str, list[Any]] = {}
        self._loop = LoopThread()

    def check_columns(self, prompts: Sequence[Prompt], where: str | None = None) -> None:
        """Raise a `UserError` for the first prompt without a column that a reward needs."""
        for part in self.parts:
            for column in required_columns(part):
                bare = next((p for p in prompts if column not in p.columns), None)
                if bare is not None:
                    known = sorted(bare.columns)
                    raise UserError(
                        f"reward {part.name!r} needs the column {column!r}, "
                        f"which prompt {bare.id!r} does not have",
                        where=where,
                        remedy=nearest(column, known) if known else "add the column to the data",
                    )

    def score(self, groups: Sequence[RolloutGroup], trainer_state: Any = None) -> list[ScoredGroup]:
        """Score every completion of every group; same order as given."""
        return self.begin(groups, trainer_state).result()

    def begin(self, groups: Sequence[RolloutGroup], trainer_state: Any = None) -> Pending:
        """Start scoring. Parts in processes of their own and async parts work on until `Pending.result`."""
        answered = [
            (Sample(prompt=group.prompt, completion=completion), index)
            for index, group in enumerate(groups)
            for completion in group.completions_G
            if completion.finish_reason != "failed"
        ]
        samples_B, group_B = [sample for sample, _ in answered], [index for _, index in answered]
        questions = (
            Questions(self.parts, samples_B, group_B, trainer_state, self._loop)
            if samples_B
            else None
        )
        return Pending(rubric=self, groups=tuple(groups), questions=questions)

    def finish(
        self, groups: Sequence[RolloutGroup], questions: Questions | None
    ) -> list[ScoredGroup]:
        """The scores behind a `Pending`: waits, counts failures, keeps what was logged."""
        outcomes = questions.outcomes() if questions else {}
        self.metrics = questions.logged.metrics if questions else {}
        self.extras = questions.logged.extras if questions else {}
        self.failures.record(outcomes)
        rows = iter(zip(*outcomes.values(), strict=True))
        return [
            ScoredGroup(
                group=group,
                scores_G=tuple(
                    self._unsampled(completion)
                    if completion.finish_reason == "failed"
                    else self._combine(next(rows))
                    for completion in group.completions_G
                ),
            )
            for group in groups
        ]

    def isolation_lines(self) -> list[str]:
        """What every part runs under, for the person who starts a run."""
        lines = [part_isolation(part).line(part.name) for part in self.parts]
        if any(part_isolation(part).level == "sandbox" for part in self.parts):
            lines.append(f"sandbox: {sandbox.description()}")
        return lines

    def close(self, deadline_s: float = 5.0) -> None:
        """End the worker processes, busy ones after ``deadline_s``. Scoring again would start new ones."""
        for part in self.parts:
            if isinstance(part.function, IsolatedReward):
                part.function.pool.close(deadline_s)

    def _combine(self, row: Sequence[Outcome]) -> Score:
        named = dict(zip(self.weights, row, strict=True))
        parts = {name: None if isinstance(o, Failure) else o for name, o in named.items()}
        scored = {name: value for name, value in parts.items() if value is not None}
        value = sum(self.weights[name] * value for name, value in scored.items())
        broken = [f"{name}: {o.reason}" for name, o in named.items() if isinstance(o, Failure)]
        if not broken and not math.isfinite(value):
            broken = [f"the weighted sum is {value}"]
        if broken:
            return self._failed("; ".join(broken), parts)
        if not scored:
            return Score(value=None, status="abstained", parts=parts, weights=self.weights)
        return Score(value=value, status="scored", parts=parts, weights=self.weights)

    def _unsampled(self, completion: Completion) -> Score:
        detail = f"no completion: {completion.detail or 'the rollout failed'}"
        return self._failed(detail, dict.fromkeys(self.weights))

    def _failed(self, detail: str, parts: Mapping[str, float | None]) -> Score:
        return Score(value=None, status="failed", parts=parts, weights=self.weights, detail=detail)


@dataclass(slots=True, kw_only=True)
class Pending:
    """Groups that are being scored."""

    rubric: Rubric
    groups: tuple[RolloutGroup, ...]
    questions: Questions | None
    """None: there is nothing to ask."""
    _scored: list[ScoredGroup] | None = None

    def result(self) -> list[ScoredGroup]:
        """One `ScoredGroup` per group, in order; waits for them."""
        if self._scored is None:
            self._scored = self.rubric.finish(self.groups, self.questions)
        return self._scored


def part_isolation(part: RewardPart) -> Isolation:
    """What one part runs under."""
    function = part.function
    return function.isolation if isinstance(function, IsolatedReward) else Isolation()

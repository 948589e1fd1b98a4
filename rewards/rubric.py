"""Several rewards as one score per completion: scored, abstained or failed.

    value = sum over the parts that scored of weight * value

All parts abstained: the sample abstained. Any part failed: the sample failed, so that a broken
reward is never mistaken for a low one. Every part is called once for all groups together; failed
completions are shown to no reward. The rubric decides nothing about failures: it counts them in
`Rubric.failures`, and who runs the round holds them to a budget.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rewards.base import RewardPart, Sample
from rewards.call import Failure, Outcome, call_part, call_part_async, is_async
from rewards.failures import FailureLog
from rewards.loop import LoopThread
from rewards.registry import load_reward
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
        function = load_reward(spec.name, spec.options, place)
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
        samples_B = [
            Sample(prompt=group.prompt, completion=completion)
            for group in groups
            for completion in group.completions_G
            if completion.finish_reason != "failed"
        ]
        self.metrics, self.extras = {}, {}
        outcomes = self._ask(samples_B, trainer_state) if samples_B else {}
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

    def _ask(self, samples_B: Sequence[Sample], trainer_state: Any) -> dict[str, list[Outcome]]:
        """Outcomes [B] of every part. Async parts wait on their servers while sync ones compute."""
        metrics: defaultdict[str, list[float]] = defaultdict(list)
        extras: defaultdict[str, list[Any]] = defaultdict(list)
        asked = {
            p.name: _Question(p, samples_B, _context(p.name, trainer_state, metrics, extras))
            for p in self.parts
        }
        waiting = [question for question in asked.values() if is_async(question.part.function)]
        pending = self._loop.submit(_gather(waiting)) if waiting else None
        outcomes = {name: q.ask() for name, q in asked.items() if q not in waiting}
        if pending is not None:
            answers = pending.result()
            outcomes |= {q.part.name: answer for q, answer in zip(waiting, answers, strict=True)}
        self.metrics = {name: sum(values) / len(values) for name, values in metrics.items()}
        self.extras = dict(extras)
        return {part.name: outcomes[part.name] for part in self.parts}

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


class _Question:
    """One part and the samples it can be asked about: those that have the columns it needs."""

    def __init__(
        self, part: RewardPart, samples_B: Sequence[Sample], context: Mapping[str, Any]
    ) -> None:
        self.part, self.context = part, context
        needed = required_columns(part)
        self.missing = [
            next((c for c in needed if c not in s.prompt.columns), None) for s in samples_B
        ]
        self.samples = [s for s, name in zip(samples_B, self.missing, strict=True) if name is None]

    def ask(self) -> list[Outcome]:
        return self._fill(call_part(self.part, self.samples, self.context) if self.samples else [])

    async def ask_async(self) -> list[Outcome]:
        if not self.samples:
            return self._fill([])
        return self._fill(await call_part_async(self.part, self.samples, self.context))

    def _fill(self, answers: Sequence[Outcome]) -> list[Outcome]:
        answer = iter(answers)
        return [
            next(answer) if name is None else Failure.of(f"the prompt has no column {name!r}")
            for name in self.missing
        ]


async def _gather(questions: Sequence[_Question]) -> list[list[Outcome]]:
    return await asyncio.gather(*(question.ask_async() for question in questions))


def _context(
    name: str, trainer_state: Any, metrics: dict[str, list[float]], extras: dict[str, list[Any]]
) -> dict[str, Any]:
    """TRL's extra arguments, bound to one part."""

    def log_metric(metric: str, value: float) -> None:
        metrics[f"{name}/{metric}"].append(float(value))

    def log_extra(column: str, values: Sequence[Any]) -> None:
        extras[f"{name}/{column}"].extend(values)

    return {"trainer_state": trainer_state, "log_extra": log_extra, "log_metric": log_metric}

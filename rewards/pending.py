"""Questions to the parts of a rubric, on their way: what has been asked, and what came back.

Parts in processes of their own and async parts answer while the caller does something else; sync inline
parts are computed when the answers are wanted.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from rewards.base import RewardPart, Sample
from rewards.call import Failure, Outcome, call_part, call_part_async, is_async
from rewards.isolation.reward import Asked, IsolatedReward
from rewards.loop import LoopThread
from rewards.signature import required_columns


class Logged:
    """What the parts gave ``log_metric`` and ``log_extra`` for one batch."""

    def __init__(self) -> None:
        self._metrics: defaultdict[str, list[float]] = defaultdict(list)
        self._extras: defaultdict[str, list[Any]] = defaultdict(list)

    def metric(self, part: str, name: str, value: float) -> None:
        self._metrics[f"{part}/{name}"].append(float(value))

    def extra(self, part: str, column: str, values: Sequence[Any]) -> None:
        self._extras[f"{part}/{column}"].extend(values)

    @property
    def metrics(self) -> dict[str, float]:
        """Means, by ``<part>/<name>``."""
        return {name: sum(values) / len(values) for name, values in self._metrics.items()}

    @property
    def extras(self) -> dict[str, list[Any]]:
        """Everything, by ``<part>/<column>``."""
        return dict(self._extras)

    def context(self, part: str, trainer_state: Any) -> dict[str, Any]:
        """TRL's extra arguments, bound to one part."""
        return {
            "trainer_state": trainer_state,
            "log_extra": lambda column, values: self.extra(part, column, values),
            "log_metric": lambda name, value: self.metric(part, name, value),
        }


class Questions:
    """One batch before all parts of a rubric. What can start at once has started.

    Args:
        group_B: the group of every sample, as an index.
    """

    def __init__(
        self,
        parts: Sequence[RewardPart],
        samples_B: Sequence[Sample],
        group_B: Sequence[int],
        trainer_state: Any,
        loop: LoopThread,
    ) -> None:
        self.logged = Logged()
        self._asked = [_Question(p, samples_B, group_B, trainer_state, self.logged) for p in parts]
        for question in self._asked:
            question.begin()
        self._waiting = [question for question in self._asked if question.is_async]
        self._pending: Future[list[list[Outcome]]] | None = (
            loop.submit(_gather(self._waiting)) if self._waiting else None
        )

    def outcomes(self) -> dict[str, list[Outcome]]:
        """Outcomes [B] of every part, by its name; waits for them."""
        found = {q.part.name: q.ask() for q in self._asked if not q.is_async}
        if self._pending is not None:
            answers = zip(self._waiting, self._pending.result(), strict=True)
            found |= {question.part.name: outcomes for question, outcomes in answers}
        return {question.part.name: found[question.part.name] for question in self._asked}


class _Question:
    """One part and the samples it can be asked about: those that have the columns it needs."""

    def __init__(
        self,
        part: RewardPart,
        samples_B: Sequence[Sample],
        group_B: Sequence[int],
        trainer_state: Any,
        logged: Logged,
    ) -> None:
        self.part, self._state, self._logged = part, trainer_state, logged
        self.is_async = is_async(part.function)
        needed = required_columns(part)
        self._missing = [
            next((c for c in needed if c not in s.prompt.columns), None) for s in samples_B
        ]
        kept = [index for index, name in enumerate(self._missing) if name is None]
        self._samples = [samples_B[index] for index in kept]
        self._groups = [group_B[index] for index in kept]
        self._context: Mapping[str, Any] = logged.context(part.name, trainer_state)
        self._sent: Asked | None = None

    def begin(self) -> None:
        if isinstance(self.part.function, IsolatedReward) and self._samples:
            self._sent = self.part.function.begin(self._samples, self._groups, self._state)

    def ask(self) -> list[Outcome]:
        if self._sent is not None:
            return self._fill(self._collect(self._sent))
        if not self._samples:
            return self._fill([])
        return self._fill(call_part(self.part, self._samples, self._context))

    async def ask_async(self) -> list[Outcome]:
        if not self._samples:
            return self._fill([])
        return self._fill(await call_part_async(self.part, self._samples, self._context))

    def _collect(self, sent: Asked) -> list[Outcome]:
        outcomes = sent.result()
        for name, value in sent.batch.metrics():
            self._logged.metric(self.part.name, name, value)
        for column, values in sent.batch.extras().items():
            self._logged.extra(self.part.name, column, values)
        return outcomes

    def _fill(self, answers: Sequence[Outcome]) -> list[Outcome]:
        answer = iter(answers)
        return [
            next(answer)
            if name is None
            else Failure.of(f"the prompt has no column {name!r}", "column")
            for name in self._missing
        ]


async def _gather(questions: Sequence[_Question]) -> list[list[Outcome]]:
    return await asyncio.gather(*(question.ask_async() for question in questions))

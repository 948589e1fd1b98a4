"""A judge that says which of two answers is better. Zheng et al. 2023, arXiv 2306.05685, pairwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rewards.base import ShownCompletion
from rewards.environments.state import EndedEnvironment
from rewards.library.judge.endpoint import Endpoint, JudgeError
from rewards.library.judge.question import READS, Question, blocks_of, read_object, transcript
from rewards.library.judge.score import verdict_schema
from rewards.signatures.options import given, one_of
from rollouts.types import Message

INSTRUCTIONS = (
    "You compare two answers to a prompt, A and B. The criteria:\n{criteria}\n\n"
    "First give a short reason, then say which is better: A, B or tie. Neither their order nor "
    "their length is a merit."
)
VALUES = {"A": 1.0, "tie": 0.5, "B": 0.0}
"""Values of a verdict for the answer that was shown as A."""


Shown = tuple[ShownCompletion, EndedEnvironment | None]
"""Completion with the environment that it acted in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairwiseJudge(Endpoint):
    """Preference of a language model for the completion over the column ``reference``: 1 better, 0.5
    tie, 0 worse.

    Each pair is asked about twice, in both orders, and the two verdicts are averaged: a judge that
    always prefers the first gives 0.5 (arXiv 2306.05685 section 3.4). None where either verdict cannot be
    read or there is no reference. The other options are those of `rewards.library.judge.endpoint.Endpoint`.
    """

    criteria: str = ""
    """Criteria of a better answer, in words."""
    reads: str = "episode"
    """``episode``: all turns, calls and results of a policy that acted; ``answer``: its last turn alone."""

    def __post_init__(self) -> None:
        Endpoint.__post_init__(self)
        given("pairwise_judge", "criteria", self.criteria, '"What makes an answer better."')
        one_of("reads", self.reads, READS)

    async def __call__(
        self,
        prompts: Sequence[str | Sequence[Message]],
        completions: Sequence[ShownCompletion],
        reference: Sequence[Any],
        environments: Sequence[EndedEnvironment | None] | None = None,
    ) -> list[float | JudgeError | None]:
        """Judge each completion both ways round; return one value per completion."""
        ended = environments or [None] * len(completions)
        questions = [
            self.question(prompt, *order)
            for prompt, *shown, other in zip(prompts, completions, ended, reference, strict=True)
            if other is not None
            for order in ((tuple(shown), (other, None)), ((other, None), tuple(shown)))
        ]
        answers = iter(await self.ask(questions))
        return [None if r is None else self.value(next(answers), next(answers)) for r in reference]

    def question(self, prompt: str | Sequence[Message], first: Shown, second: Shown) -> Question:
        """Make the question which of two answers is better."""
        blocks = (*blocks_of("A", *first, self.reads), *blocks_of("B", *second, self.reads))
        return Question(
            instructions=INSTRUCTIONS.format(criteria=self.criteria),
            texts=(("prompt", transcript(prompt)), *blocks),
            schema=verdict_schema("better", {"type": "string", "enum": list(VALUES)}),
        )

    @staticmethod
    def value(straight: str | JudgeError, swapped: str | JudgeError) -> float | JudgeError | None:
        """Return the mean of both verdicts, seen from the completion, which is B in the second."""
        for answer in (straight, swapped):
            if isinstance(answer, JudgeError):
                return answer
        verdicts = [read_object(str(answer)).get("better") for answer in (straight, swapped)]
        if not all(isinstance(verdict, str) and verdict in VALUES for verdict in verdicts):
            return None
        return (VALUES[str(verdicts[0])] + 1.0 - VALUES[str(verdicts[1])]) / 2.0

"""A judge that gives each answer a number. Zheng et al. 2023, arXiv 2306.05685, single answer grading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.base import ShownCompletion
from rewards.environments.state import EndedEnvironment
from rewards.library.judge.endpoint import Endpoint, JudgeError
from rewards.library.judge.question import READS, Question, blocks_of, read_object, transcript
from rewards.signatures.options import given, one_of, whole_number
from rollouts.types import Message

INSTRUCTIONS = (
    "You grade an answer to a prompt. The criteria:\n{criteria}\n\n"
    "First give a short reason, then a score from 1 (the criteria are not met at all) to {scale} "
    "(they are met in full). Length is no merit of its own."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LLMJudge(Endpoint):
    """Score of a language model for the completion: 0.0 (the lowest) to 1.0 (the highest).

    The options are the criteria and those of `rewards.library.judge.endpoint.Endpoint`. None where the
    judge's
    answer cannot be read; a sample that it could not be asked about has failed. Reasons go to
    ``log_extra``. Judges can be fooled by a single token (arXiv 2507.08794): keep canaries.
    """

    criteria: str = ""
    """Criteria of a good answer, in words."""
    scale: int = 10
    """Highest score on the judge's scale, which begins at 1."""
    reads: str = "episode"
    """``episode``: all turns, calls and results of a policy that acted; ``answer``: its last turn alone."""

    def __post_init__(self) -> None:
        Endpoint.__post_init__(self)
        given("llm_judge", "criteria", self.criteria, '"What a good answer is."')
        whole_number("scale", self.scale, 2)
        one_of("reads", self.reads, READS)

    async def __call__(
        self,
        prompts: Sequence[str | Sequence[Message]],
        completions: Sequence[ShownCompletion],
        environments: Sequence[EndedEnvironment | None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
    ) -> list[float | JudgeError | None]:
        """Score every completion."""
        ended = environments or [None] * len(completions)
        rows = zip(prompts, completions, ended, strict=True)
        questions = [self.question(*row) for row in rows]
        answers = await self.ask(questions)
        if log_extra is not None:
            reasons = [
                a if isinstance(a, JudgeError) else read_object(a).get("reason", "")
                for a in answers
            ]
            log_extra("reason", list(map(str, reasons)))
        return [a if isinstance(a, JudgeError) else self.score(a) for a in answers]

    def question(
        self,
        prompt: str | Sequence[Message],
        completion: ShownCompletion,
        ended: EndedEnvironment | None = None,
    ) -> Question:
        """Make the question about one completion."""
        blocks = blocks_of("completion", completion, ended, self.reads)
        score = {"type": "integer", "minimum": 1, "maximum": self.scale}
        return Question(
            instructions=INSTRUCTIONS.format(criteria=self.criteria, scale=self.scale),
            texts=(("prompt", transcript(prompt)), *blocks),
            schema=verdict_schema("score", score),
        )

    def score(self, answer: str) -> float | None:
        """Read the number in an answer and put it on 0 to 1; None where there is no valid one."""
        number = read_object(answer).get("score")
        if type(number) is not int or not 1 <= number <= self.scale:
            return None
        return (number - 1) / (self.scale - 1)


def verdict_schema(name: str, kind: dict[str, Any]) -> dict[str, Any]:
    """Return a schema with a short reason first, so that the verdict can follow from it."""
    return {
        "type": "object",
        "properties": {"reason": {"type": "string", "maxLength": 400}, name: kind},
        "required": ["reason", name],
        "additionalProperties": False,
    }

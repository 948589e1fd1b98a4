"""Documents of a task and the questions about them, as values that another process can send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, Self

from align.gate.suites.harness.lm import TextModel
from rollouts.types import Score


@dataclass(kw_only=True, slots=True)
class TaskQuestion:
    """One request to a model, with the fields of lm_eval's ``Instance`` that an ``LM`` reads."""

    request_type: str
    args: tuple[Any, ...]
    doc_id: int
    repeats: int = 1
    resps: list[Any] = field(default_factory=list)
    """Answers of the newest measurement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskDocument:
    """One document of a task, named by lm_eval's hashes."""

    id: str
    text: str
    """Words of the document, without worked examples."""
    columns: Mapping[str, Any]
    doc: Any
    questions: tuple[int, ...]
    """Numbers of its questions among all of the task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFacts:
    """Properties of a loaded task."""

    metrics: Mapping[str, bool]
    """Names of its metrics, the first being its own choice; True: more is better."""
    judges: bool
    """True if a function of the task's own judges answers."""
    output_type: str
    documents: int
    shows_examples: bool
    """True if worked examples precede each document."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """Questions of a task, and the documents that they are about, each once."""

    questions: tuple[TaskQuestion, ...]
    documents: tuple[TaskDocument, ...]
    num_duplicates: int

    def dump(self) -> dict[str, Any]:
        """Return the contents as a mapping."""
        return asdict(self)

    @classmethod
    def load(cls, fields: Mapping[str, Any]) -> Self:
        """Restore what `dump` made, also where lists took the place of tuples."""
        return cls(
            questions=tuple(
                TaskQuestion(**{**question, "args": tuple(question["args"])})
                for question in fields["questions"]
            ),
            documents=tuple(
                TaskDocument(**{**document, "questions": tuple(document["questions"])})
                for document in fields["documents"]
            ),
            num_duplicates=fields["num_duplicates"],
        )


class TaskProvider(Protocol):
    """A loaded task, in this process or in one of its own."""

    @property
    def facts(self) -> TaskFacts: ...

    def contents(self, number: int, model: TextModel, chat: bool) -> Contents:
        """Build the questions about the first documents.

        Args:
            chat: ask in turns of the model's chat template.
        """

    def judge(self, answers: Sequence[Sequence[Any]], metric: str, filter: str) -> list[Score]:
        """Return the value of each document.

        Args:
            answers: of every question.
        """

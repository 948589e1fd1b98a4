"""A task whose files run code, in a process of its own: with listed variables and a deadline.

The process loads the task, builds its questions and judges the answers. A document whose answers end two
processes, or are not judged in time twice, is a failed item.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.gate.suites.harness.documents import Contents, TaskFacts
from align.gate.suites.harness.lm import TextModel
from align.gate.suites.harness.loaded import as_json
from rewards.isolation.process import Plan, Worker, WorkerEnded
from rewards.isolation.user import NOBODY, PYTHON, closed_to
from rollouts.errors import RunError, UserError
from rollouts.types import Score

SERVICE = "align.gate.suites.harness.worker:serve_task"
MEMORY_GIB = 16.0
"""Address space of the process; `datasets` maps its files into it."""
MOST_ENDED = 8
"""Processes that the answers of one measurement may end."""


class ConfinedTask:
    """A task in a process of its own, which is started again where it has ended.

    Attributes:
        facts: the task's properties.
    """

    def __init__(
        self, path: Path, changes: Mapping[str, Any], where: str, *, name: str, deadline_s: float
    ) -> None:
        """Load a task file with the keys that a suite changes.

        Args:
            name: of the task, for messages.
            deadline_s: for loading, for building the questions, and for judging each document.

        Raises:
            UserError: lm_eval cannot load it, or its code ends the process or takes too long.
        """
        self._name, self._where, self._deadline_s = name, where, deadline_s
        self._plan = Plan(
            reward=name,
            options={"path": str(path), "changes": dict(changes)},
            where=where,
            folder=str(Path.cwd()),
            memory_gib=MEMORY_GIB,
            sample_deadline_s=None,
            serves=SERVICE,
            user=_other_user(path, changes),
        )
        self._questions: Mapping[str, Any] = {}
        self._model: TextModel | None = None
        self._first: Contents | None = None
        self._fingerprint = ""
        self._worker = self._started()
        self.facts = TaskFacts(**self._worker.about)

    def contents(self, number: int, model: TextModel, chat: bool) -> Contents:
        """Build the questions about the first documents.

        Raises:
            UserError: the task's code cannot.
        """
        self._model = model
        self._questions = {"number": number, "chat": chat, "tokenizer": model.tokenizer_name}
        self._first = self._built()
        self._fingerprint = as_json(self._first.dump())  # before answers are added to it
        return self._first

    def judge(self, answers: Sequence[Sequence[Any]], metric: str, filter: str) -> list[Score]:
        """Return the value of each document.

        Raises:
            RunError: the code ends process after process, or the task is another one than before.
        """
        assert self._first is not None, "questions are built before answers are judged"
        scores: list[Score] = []
        suspect, ended = -1, 0
        while len(scores) < len(self._first.documents):
            request = {"answers": answers, "metric": metric, "filter": filter, "first": len(scores)}
            try:
                for result in self._worker.call({"judge": request}, self._deadline_s):
                    scores.append(Score(**result))
            except WorkerEnded as end:
                ended += 1
                if ended > MOST_ENDED:
                    raise self._broken(end) from None
                if suspect == len(scores):
                    reason = f"the task's code: {end.failure.reason}"
                    scores.append(Score(value=None, status="failed", detail=reason))
                suspect = len(scores)
                self._restart()
            except UserError as error:
                raise RunError(error.what, cause=error.cause, remedy=error.remedy or "") from None
        return scores

    def _broken(self, end: WorkerEnded) -> RunError:
        return RunError(
            f"the code of the task {self._name!r} ended {MOST_ENDED + 1} processes in one measurement",
            cause=end.failure.reason,
            remedy=f"correct it, or raise {self._where}.deadline_s",
        )

    def _restart(self) -> None:
        """Load the task again, and see that it is the same."""
        try:
            self._worker = self._started()
            again = self._built()
        except UserError as error:
            raise RunError(error.what, cause=error.cause, remedy=error.remedy or "") from None
        if as_json(again.dump()) != self._fingerprint:
            raise RunError(
                f"the task {self._name!r} asks other questions than when it was loaded",
                cause="its files have changed, or its code draws at random without a seed",
                remedy="restore its files, and run the campaign again",
            )

    def _started(self) -> Worker:
        try:
            worker = Worker(self._plan, self._deadline_s)
        except WorkerEnded as end:
            raise self._stuck("load the task", end) from None
        weakref.finalize(self, worker.end)
        return worker

    def _built(self) -> Contents:
        try:
            (fields,) = self._worker.call(
                {"build": self._questions}, self._deadline_s, answer=self._rendered
            )
        except WorkerEnded as end:
            raise self._stuck("build its questions", end) from None
        return Contents.load(fields)

    def _rendered(self, question: Mapping[str, Any]) -> str:
        """Render turns of a chat for the process, which has no tokenizer."""
        assert self._model is not None
        return self._model.apply_chat_template(
            list(question["turns"]), add_generation_prompt=bool(question["open"])
        )

    def _stuck(self, step: str, end: WorkerEnded) -> UserError:
        return UserError(
            f"the code of the task {self._name!r} did not {step}: {end.failure.reason}",
            where=self._where,
            cause=f"it runs in a process of its own, for at most {self._deadline_s:g} s",
            remedy="correct it, or raise deadline_s of the harness",
        )


def _other_user(path: Path, changes: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the ids of ``nobody`` where Keel is root and that user can read the task; else None."""
    data = (changes.get("dataset_kwargs") or {}).get("data_files") or {}
    files = [
        each for entry in data.values() for each in ([entry] if isinstance(entry, str) else entry)
    ]
    paths = [str(Path.cwd()), *PYTHON, str(path), *files]
    needed = [each for each in paths if os.path.exists(each)]
    if os.geteuid() != 0 or closed_to(NOBODY, needed) is not None:
        return None
    return NOBODY.user, NOBODY.group

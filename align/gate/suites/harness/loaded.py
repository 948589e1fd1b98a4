"""A task that lm_eval has loaded: its documents, its questions, and its judgement of answers.

What a task file names is imported and run here alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from align.gate.suites.harness.documents import Contents, TaskDocument, TaskFacts, TaskQuestion
from align.gate.suites.harness.lm import TextModel
from align.gate.suites.harness.package import harmless_templates, quietly
from align.gate.suites.harness.task_file import with_changes
from align.gate.suites.harness.values import item_value
from rollouts.errors import RunError, UserError, nearest
from rollouts.types import Score

FEWSHOT_SEED = 1234
"""Seed of the worked examples, as `lm_eval.simple_evaluate` draws them."""


class LoadedTask:
    """A task with its data.

    Attributes:
        facts: its properties.
    """

    def __init__(self, path: Path, changes: Mapping[str, Any], where: str) -> None:
        """Load a task file with the keys that a suite changes.

        Raises:
            UserError: lm_eval cannot load it, or it has no documents.
        """
        self._task = task = load(path, changes, where)
        self._instances: list[Any] = []
        self._documents: list[list[Any]] = []
        better = task.higher_is_better()
        self.facts = TaskFacts(
            metrics={str(name): better.get(name) is not False for name in task.aggregation()},
            judges=callable(task.config.process_results),
            output_type=str(task.OUTPUT_TYPE),
            documents=len(task.eval_docs),
            shows_examples=bool(task.config.num_fewshot),
        )

    def contents(self, number: int, model: TextModel, chat: bool) -> Contents:
        """Build the questions about the first documents; a document that is repeated counts once."""
        task = self._task
        with quietly(), harmless_templates():
            task.set_fewshot_seed(FEWSHOT_SEED)
            task.build_all_requests(
                limit=number,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
                chat_template=model.apply_chat_template if chat else None,
                tokenizer_name=model.tokenizer_name if chat else "",
            )
            self._instances = list(task.instances)
            return self._distinct()

    def judge(self, answers: Sequence[Sequence[Any]], metric: str, filter: str) -> list[Score]:
        """Return the value of each document."""
        return list(self.scores(answers, metric, filter))

    def scores(
        self, answers: Sequence[Sequence[Any]], metric: str, filter: str, first: int = 0
    ) -> Iterator[Score]:
        """Yield the value of each document from number ``first`` on.

        Raises:
            RunError: the task has no such metric after all.
        """
        for instance, responses in zip(self._instances, answers, strict=True):
            instance.resps = [tuple(each) if isinstance(each, list) else each for each in responses]
            instance.filtered_resps = {}
        with harmless_templates():
            self._task.apply_filters()
            for instances in self._documents[first:]:
                yield self._score(instances, metric, filter)

    def _score(self, instances: Sequence[Any], metric: str, filter: str) -> Score:
        responses = [instance.filtered_resps[filter] for instance in instances]
        try:
            values = self._task.process_results(instances[0].doc, responses)
        except Exception as error:  # A task's own code: what it cannot judge counts as failed.
            return Score(value=None, status="failed", detail=f"{type(error).__name__}: {error}")
        if metric not in values:
            raise RunError(
                f"the task gives no {metric!r} for its items",
                remedy=nearest(metric, [str(name) for name in values]),
            )
        more = self._task.higher_is_better().get(metric) is not False
        value = item_value(metric, values[metric], higher_is_better=more)
        return Score(value=value, status="abstained" if value is None else "scored")

    def _distinct(self) -> Contents:
        """Return every document once: a repeated one would pretend to be more evidence."""
        by_doc: dict[int, list[int]] = {}
        for number, instance in enumerate(self._instances):
            by_doc.setdefault(instance.doc_id, []).append(number)
        documents: dict[str, TaskDocument] = {}
        for numbers in by_doc.values():
            numbers.sort(key=lambda number: self._instances[number].idx)
            document = self._document(numbers)
            if document.id not in documents:
                documents[document.id] = document
                self._documents.append([self._instances[number] for number in numbers])
        return Contents(
            questions=tuple(map(_question, self._instances)),
            documents=tuple(documents.values()),
            num_duplicates=len(by_doc) - len(documents),
        )

    def _document(self, numbers: Sequence[int]) -> TaskDocument:
        first = self._instances[numbers[0]]
        return TaskDocument(
            id=item_id(first.doc, first.arguments[0]),
            text=self._text(first.doc, numbers),
            columns=dict(first.doc) if isinstance(first.doc, Mapping) else {},
            doc=first.doc,
            questions=tuple(numbers),
        )

    def _text(self, doc: Any, numbers: Sequence[int]) -> str:
        """Return the words of a document; of a text that is only scored, the text."""
        words = self._task.doc_to_text(doc)
        if isinstance(words, str) and words.strip():
            return words
        texts = [str(self._instances[number].args[0]) for number in numbers]
        return "\n".join(dict.fromkeys(texts))


def _question(instance: Any) -> TaskQuestion:
    return TaskQuestion(
        request_type=instance.request_type,
        args=instance.args,
        doc_id=instance.doc_id,
        repeats=instance.repeats,
    )


def load(path: Path, changes: Mapping[str, Any], where: str) -> Any:
    """Return `lm_eval.api.task.Task`, its data read."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    name = path.stem
    try:
        with quietly(), harmless_templates():
            config = with_changes(load_yaml(path, resolve_func=True), changes)
            name = config.get("task", name)
            config.pop("tag", None)
            manager = TaskManager(include_defaults=False)
            (task,) = manager.load(config)["tasks"].values()
            if not len(task.eval_docs):
                raise IndexError
    except IndexError as error:
        raise UserError(
            f"the task {name!r} has no documents",
            where=where,
            cause="its data is empty, or process_docs left nothing over",
        ) from error
    except (
        Exception
    ) as error:  # A task file can be wrong in any way that lm_eval and datasets know.
        raise UserError(
            f"lm_eval cannot load the task {name!r}: {type(error).__name__}: {error}",
            where=where,
            cause=f"{path} and its data do not fit together",
        ) from error
    return task


def item_id(doc: Any, prompt: str) -> str:
    """Return the first 16 digits of lm_eval's ``doc_hash`` and ``prompt_hash`` of logged samples."""
    from lm_eval.utils import hash_string

    return f"{hash_string(as_json(doc, indent=2))[:16]}-{hash_string(str(prompt))[:16]}"


def as_json(value: Any, **options: Any) -> str:
    """Encode a value as lm_eval's logs do."""
    from lm_eval.utils import handle_non_serializable

    return json.dumps(value, default=handle_non_serializable, ensure_ascii=False, **options)

"""A task of lm_eval with its items: loaded once, measured on every snapshot.

Items are named by lm_eval's own hashes of document and prompt, so that two snapshots are paired by what
they were asked. A measurement goes the way of `lm_eval.evaluate`: requests to the model, filters over the
answers, the task's ``process_results`` for every document.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from align.config.gate import HarnessConfig
from align.gate.measurement.samples import ItemScore, checked
from align.gate.suites.harness.documents import Contents, TaskFacts, TaskProvider, TaskQuestion
from align.gate.suites.harness.lm import EngineModel, TextModel, engine_lm
from align.gate.suites.harness.loaded import as_json
from align.gate.suites.harness.package import lm_eval_version
from align.gate.suites.harness.requests import check_requests
from align.gate.suites.harness.task_file import TaskFile
from align.gate.suites.harness.values import LIKELIHOODS, WHOLE
from rollouts.chat.probe import check_conversations, probe_turns
from rollouts.engines.protocol import RolloutEngine
from rollouts.errors import RunError, UserError, nearest
from rollouts.types import Completion, Prompt, Score

if TYPE_CHECKING:
    from rollouts.prompts import PromptEncoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessItem:
    """One document: what is asked about it."""

    prompt: Prompt
    """Named by lm_eval's hashes; its text is the document's, without worked examples."""
    doc: Any
    instances: tuple[TaskQuestion, ...]
    """One, or one per choice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessTask:
    """A task and its items, on one tokenizer and context."""

    provider: TaskProvider
    """The loaded task, which judges answers."""
    questions: tuple[TaskQuestion, ...]
    """Requests about all documents, also about repeated ones."""
    items: tuple[HarnessItem, ...]
    metric: str
    filter: str
    context: int | None
    """Prompt plus completion that engines hold, in tokens."""
    num_cut: int
    """Requests that lose their beginning to fit."""
    digest: str = field(repr=False)
    """sha256 of everything that decides a value besides the model."""

    @property
    def scores(self) -> bool:
        """True if the task asks for log-likelihoods of given texts."""
        return any(request.request_type != "generate_until" for request in self.questions)

    @property
    def unit(self) -> str:
        """Unit of an item's value if it is a log-likelihood; else empty."""
        return LIKELIHOODS.get(self.metric, "")

    def measure(
        self,
        engine: RolloutEngine,
        encoder: PromptEncoder,
        seed: int,
        value_range: tuple[float, float] | None = None,
    ) -> tuple[list[ItemScore], int]:
        """Return the items' values under the weights the engine holds, and the tokens that took.

        Raises:
            RunError: the task has no such metric after all, or a value lies outside its range.
        """
        facts = self.provider.facts
        is_greedy_read = (
            facts.judges or facts.output_type == "loglikelihood" or self.metric == "exact_match"
        )
        lm = engine_lm(engine, encoder, self.context, seed=seed, greedy=is_greedy_read)
        self._ask(lm)
        answers = [question.resps for question in self.questions]
        scores = self.provider.judge(answers, self.metric, self.filter)
        return [
            self._score(item, score, lm, value_range)
            for item, score in zip(self.items, scores, strict=True)
        ], lm.num_tokens

    def _ask(self, lm: EngineModel) -> None:
        """Send every request, as often as the task repeats it."""
        by_type: dict[str, list[TaskQuestion]] = {}
        for question in self.questions:
            question.resps = []
            by_type.setdefault(question.request_type, []).extend([question] * question.repeats)
        for request_type, questions in by_type.items():
            answers = getattr(lm, request_type)(questions, disable_tqdm=True)
            for question, answer in zip(questions, answers, strict=True):
                question.resps.append(answer)

    def _score(
        self,
        item: HarnessItem,
        score: Score,
        lm: EngineModel,
        value_range: tuple[float, float] | None,
    ) -> ItemScore:
        finish = lm.finishes.get(item.instances[0].doc_id, "stop")
        if finish == "failed":
            score = Score(value=None, status="failed", detail="an engine gave no answer")
        try:
            score = checked(score, value_range)
        except ValueError as error:
            raise RunError(
                f"a value of {self.metric} cannot be right: item {item.prompt.id!r} got {error}",
                remedy="state the range of its values in the suite",
            ) from error
        return ItemScore(
            value=score.value,
            status=score.status,
            detail=score.detail,
            completion=Completion(
                token_ids=(), logprobs_T=(), text=_answer(item), finish_reason=finish
            ),
        )


def build_task(
    task: TaskProvider,
    file: TaskFile,
    spec: HarnessConfig,
    items: int,
    encoder: PromptEncoder,
    context: int | None,
    where: str,
) -> HarnessTask:
    """Build the requests of a loaded task.

    Args:
        task: loaded, here or in a process of its own.
        items: documents used, from the first on.

    Raises:
        UserError: too few documents, no such metric or filter, or requests that cannot be made.
    """
    metric, filter = _metric(task.facts, spec, where), _filter(file, spec, where)
    model = TextModel(encoder, context)
    available = task.facts.documents
    if available < items:
        raise UserError(
            f"the suite asks for {items} items and the task {spec.task!r} has {available}",
            where=where,
            remedy=f"set items to {available} or less" if available else "look at its data",
        )
    if spec.chat_template and model.tokenizer.chat_template is None:
        raise UserError("the model has no chat template", where=f"{where}.harness.chat_template")
    if spec.chat_template:
        roles = ("user", "assistant", "user") if task.facts.shows_examples else ("user",)
        prompt = Prompt(id=spec.task, messages=probe_turns(roles))
        check_conversations(encoder, [prompt], f"{where}.harness.chat_template")
    contents = task.contents(items, model, spec.chat_template)
    built = _items(contents)
    num_cut = check_requests(contents.questions, model, where)
    if num_cut:
        logger.warning(
            "%s: %d of %d requests of task %s do not fit %d tokens and lose their beginning",
            where, num_cut, len(contents.questions), spec.task, model.max_length,
        )  # fmt: skip
    content = {
        **file.identity,
        "asked": [[item.doc, [request.args for request in item.instances]] for item in built],
        "metric": [metric, filter],
        "lm_eval": lm_eval_version(),
        "max_length": model.max_length if num_cut else None,
    }
    return HarnessTask(
        provider=task,
        questions=contents.questions,
        items=built,
        metric=metric,
        filter=filter,
        context=context,
        num_cut=num_cut,
        digest=hashlib.sha256(as_json(content, sort_keys=True).encode()).hexdigest(),
    )


def _metric(facts: TaskFacts, spec: HarnessConfig, where: str) -> str:
    known = list(facts.metrics)
    metric = spec.metric or known[0]
    if metric not in known:
        raise UserError(
            f"the task {spec.task!r} has no metric {metric!r}",
            where=f"{where}.harness.metric",
            remedy=nearest(metric, known),
        )
    if metric in WHOLE and not facts.judges:
        raise UserError(
            f"{metric} has a value only for all items together, and snapshots are compared item by item",
            where=f"{where}.harness.metric",
            remedy=f"choose another of the task's metrics: {', '.join(known)}",
        )
    return metric


def _filter(file: TaskFile, spec: HarnessConfig, where: str) -> str:
    known = [str(filter["name"]) for filter in file.config.get("filter_list") or ()] or ["none"]
    if spec.filter is not None and spec.filter not in known:
        raise UserError(
            f"the task {spec.task!r} has no filter {spec.filter!r}",
            where=f"{where}.harness.filter",
            remedy=nearest(spec.filter, known),
        )
    return spec.filter or known[0]


def _items(contents: Contents) -> tuple[HarnessItem, ...]:
    """Return the documents with their requests."""
    if contents.num_duplicates:
        logger.warning("%d documents are duplicates and are left out", contents.num_duplicates)
    return tuple(
        HarnessItem(
            prompt=Prompt(id=document.id, text=document.text, columns=dict(document.columns)),
            doc=document.doc,
            instances=tuple(contents.questions[number] for number in document.questions),
        )
        for document in contents.documents
    )


def _answer(item: HarnessItem) -> str:
    """Return the model's answer, or the choice it holds most likely."""
    first = item.instances[0]
    if first.request_type == "generate_until":
        return str(first.resps[0])
    if first.request_type == "loglikelihood":
        return str(max(item.instances, key=lambda instance: instance.resps[0][0]).args[1])
    return ""

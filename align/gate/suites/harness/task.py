"""A task of lm_eval with its items: loaded once, measured on every snapshot.

Items are named by lm_eval's own hashes of document and prompt, so that two snapshots are paired by what
they were asked. A measurement goes the way of `lm_eval.evaluate`: requests to the model, filters over the
answers, the task's ``process_results`` for every document.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from align.config.gate import HarnessConfig
from align.gate.measurement.samples import ItemScore, checked
from align.gate.suites.harness.lm import EngineModel, TextModel, engine_lm
from align.gate.suites.harness.package import harmless_templates, lm_eval_version, quietly
from align.gate.suites.harness.requests import check_requests
from align.gate.suites.harness.task_file import TaskFile
from align.gate.suites.harness.values import LIKELIHOODS, WHOLE, item_value
from rollouts.chat.probe import check_conversations, probe_turns
from rollouts.engines.protocol import RolloutEngine
from rollouts.errors import RunError, UserError, nearest
from rollouts.types import Completion, Prompt, Score

if TYPE_CHECKING:
    from rollouts.prompts import PromptEncoder

FEWSHOT_SEED = 1234
"""Seed of the worked examples, as `lm_eval.simple_evaluate` draws them."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessItem:
    """One document: what is asked about it."""

    prompt: Prompt
    """Named by lm_eval's hashes; its text is the document's, without worked examples."""
    doc: Any
    instances: tuple[Any, ...]
    """`lm_eval.api.instance.Instance`, one or one per choice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessTask:
    """A task and its items, on one tokenizer and context."""

    task: Any
    """`lm_eval.api.task.Task`, its requests built."""
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
        return any(request.request_type != "generate_until" for request in self.task.instances)

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
        is_greedy_read = (
            callable(self.task.config.process_results)
            or self.task.OUTPUT_TYPE == "loglikelihood"
            or self.metric == "exact_match"
        )
        lm = engine_lm(engine, encoder, self.context, seed=seed, greedy=is_greedy_read)
        with harmless_templates():
            self._ask(lm)
            self.task.apply_filters()
            return [self._score(item, lm, value_range) for item in self.items], lm.num_tokens

    def _ask(self, lm: EngineModel) -> None:
        """Send every request, as often as the task repeats it."""
        by_type: dict[str, list[Any]] = {}
        for instance in self.task.instances:
            instance.resps, instance.filtered_resps = [], {}
            by_type.setdefault(instance.request_type, []).extend([instance] * instance.repeats)
        for request_type, instances in by_type.items():
            answers = getattr(lm, request_type)(instances, disable_tqdm=True)
            for instance, answer in zip(instances, answers, strict=True):
                instance.resps.append(answer)

    def _score(
        self, item: HarnessItem, lm: EngineModel, value_range: tuple[float, float] | None
    ) -> ItemScore:
        finish = lm.finishes.get(item.instances[0].doc_id, "stop")
        if finish == "failed":
            score = Score(value=None, status="failed", detail="an engine gave no answer")
        else:
            score = self._value(item)
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

    def _value(self, item: HarnessItem) -> Score:
        answers = [instance.filtered_resps[self.filter] for instance in item.instances]
        try:
            values = self.task.process_results(item.doc, answers)
        except Exception as error:  # A task's own code: what it cannot judge counts as failed.
            return Score(value=None, status="failed", detail=f"{type(error).__name__}: {error}")
        if self.metric not in values:
            raise RunError(
                f"the task gives no {self.metric!r} for its items",
                remedy=nearest(self.metric, [str(name) for name in values]),
            )
        better = self.task.higher_is_better().get(self.metric) is not False
        value = item_value(self.metric, values[self.metric], higher_is_better=better)
        return Score(value=value, status="abstained" if value is None else "scored")


def build_task(
    task: Any,
    file: TaskFile,
    spec: HarnessConfig,
    items: int,
    encoder: PromptEncoder,
    context: int | None,
    where: str,
) -> HarnessTask:
    """Build the requests of a loaded task.

    Args:
        task: `lm_eval.api.task.Task`.
        items: documents used, from the first on.

    Raises:
        UserError: too few documents, no such metric or filter, or requests that cannot be made.
    """
    metric, filter = _metric(task, spec, where), _filter(file, spec, where)
    model = TextModel(encoder, context)
    available = len(task.eval_docs)
    if available < items:
        raise UserError(
            f"the suite asks for {items} items and the task {spec.task!r} has {available}",
            where=where,
            remedy=f"set items to {available} or less" if available else "look at its data",
        )
    if spec.chat_template and model.tokenizer.chat_template is None:
        raise UserError("the model has no chat template", where=f"{where}.harness.chat_template")
    if spec.chat_template:
        roles = ("user", "assistant", "user") if task.config.num_fewshot else ("user",)
        prompt = Prompt(id=spec.task, messages=probe_turns(roles))
        check_conversations(encoder, [prompt], f"{where}.harness.chat_template")
    built = _items(task, spec, items, model)
    num_cut = check_requests(task.instances, model, where)
    if num_cut:
        logger.warning(
            "%s: %d of %d requests of task %s do not fit %d tokens and lose their beginning",
            where, num_cut, len(task.instances), spec.task, model.max_length,
        )  # fmt: skip
    content = {
        **file.identity,
        "asked": [[item.doc, [request.args for request in item.instances]] for item in built],
        "metric": [metric, filter],
        "lm_eval": lm_eval_version(),
        "max_length": model.max_length if num_cut else None,
    }
    return HarnessTask(
        task=task,
        items=built,
        metric=metric,
        filter=filter,
        context=context,
        num_cut=num_cut,
        digest=hashlib.sha256(_json(content, sort_keys=True).encode()).hexdigest(),
    )


def _metric(task: Any, spec: HarnessConfig, where: str) -> str:
    known = [str(name) for name in task.aggregation()]
    metric = spec.metric or known[0]
    if metric not in known:
        raise UserError(
            f"the task {spec.task!r} has no metric {metric!r}",
            where=f"{where}.harness.metric",
            remedy=nearest(metric, known),
        )
    if metric in WHOLE and not callable(task.config.process_results):
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


def _items(
    task: Any, spec: HarnessConfig, number: int, model: TextModel
) -> tuple[HarnessItem, ...]:
    """Return the first documents with their requests."""
    with quietly(), harmless_templates():
        task.set_fewshot_seed(FEWSHOT_SEED)
        task.build_all_requests(
            limit=number,
            apply_chat_template=spec.chat_template,
            fewshot_as_multiturn=spec.chat_template,
            chat_template=model.apply_chat_template if spec.chat_template else None,
            tokenizer_name=model.tokenizer_name if spec.chat_template else "",
        )
        return _distinct(task)


def _distinct(task: Any) -> tuple[HarnessItem, ...]:
    """Return every document once: a repeated one would pretend to be more evidence."""
    by_doc: dict[int, list[Any]] = {}
    for instance in task.instances:
        by_doc.setdefault(instance.doc_id, []).append(instance)
    items: dict[str, HarnessItem] = {}
    for instances in by_doc.values():
        instances.sort(key=lambda instance: instance.idx)
        doc = instances[0].doc
        name = item_id(doc, instances[0].arguments[0])
        columns = doc if isinstance(doc, Mapping) else {}
        prompt = Prompt(id=name, text=_text(task, doc, instances), columns=dict(columns))
        item = HarnessItem(prompt=prompt, doc=doc, instances=tuple(instances))
        items.setdefault(name, item)
    if len(items) < len(by_doc):
        logger.warning("%d documents are duplicates and are left out", len(by_doc) - len(items))
    return tuple(items.values())


def item_id(doc: Any, prompt: str) -> str:
    """Return the first 16 digits of lm_eval's ``doc_hash`` and ``prompt_hash`` of logged samples."""
    from lm_eval.utils import hash_string

    return f"{hash_string(_json(doc, indent=2))[:16]}-{hash_string(str(prompt))[:16]}"


def _json(value: Any, **options: Any) -> str:
    from lm_eval.utils import handle_non_serializable

    return json.dumps(value, default=handle_non_serializable, ensure_ascii=False, **options)


def _text(task: Any, doc: Any, instances: Sequence[Any]) -> str:
    """Return the words of a document; of a text that is only scored, the text."""
    words = task.doc_to_text(doc)
    if isinstance(words, str) and words.strip():
        return words
    return "\n".join(dict.fromkeys(str(instance.args[0]) for instance in instances))


def _answer(item: HarnessItem) -> str:
    """Return the model's answer, or the choice it holds most likely."""
    first = item.instances[0]
    if first.request_type == "generate_until":
        return str(first.resps[0])
    if first.request_type == "loglikelihood":
        return str(max(item.instances, key=lambda instance: instance.resps[0][0]).args[1])
    return ""

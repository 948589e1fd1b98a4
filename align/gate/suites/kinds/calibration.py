"""Suites of multiple-choice items: is the model as sure of its choices as it is right about them?

The probability of a choice is the softmax over an item's choices of their log-likelihoods behind the
prompt, each divided by its length where ``normalise`` says so. An item's value is its Brier score, turned
so that higher is better: the squared distance of the probabilities p from the right choice r,

    value = -sum_k (p_k - [k = r])^2,    between -2 (sure and wrong) and 0 (sure and right),

summed over the choices as in Brier (1950, Monthly Weather Review 78, 1-3). It is a proper score: no other
probabilities than the model's true ones improve its mean. Accuracy and the expected calibration error
stand beside it, and no verdict reads them: accuracy does not see how sure a model is, and a model that
always says the base rates has no calibration error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Self

from align.config.gate import CalibrationConfig, LengthUnit, SuiteConfig, SuiteDemands
from align.config.rewards import RewardConfig
from align.gate.measurement.results import ItemResults
from align.gate.measurement.samples import ItemScore
from align.gate.suites.kinds.prompts import PromptSuite, read_items
from align.gate.suites.rows_check import check_rows
from align.gate.suites.scale import Range, ScoreScale
from align.gate.suites.suite import SuiteEntry, rendered
from rollouts.chat.answers import UnfitAnswer, chat_answer, text_answer
from rollouts.chat.messages import tools_of
from rollouts.engines.protocol import ScoreRequest
from rollouts.errors import TemplateRefusal, UserError, nearest
from rollouts.types import Completion, Prompt, SnapshotId

if TYPE_CHECKING:
    from rollouts.engines.protocol import RolloutEngine
    from rollouts.prompts import PromptEncoder

Ids = tuple[int, ...]
BRIER: Range = (-2.0, 0.0)
"""Range of a negated Brier score."""
ACCURACY = "accuracy"
CALIBRATION_ERROR = "expected calibration error"
"""Figures beside the Brier score."""

LENGTHS: Mapping[LengthUnit, Callable[[str, Ids], int]] = {
    "none": lambda text, token_ids: 1,
    "tokens": lambda text, token_ids: len(token_ids),
    "bytes": lambda text, token_ids: len(text.encode()),
}
"""Lengths that a choice's log-likelihood can be divided by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceItem:
    """One item: its prompt's tokens and its choices."""

    prompt_ids: Ids
    choices: tuple[str, ...]
    choice_ids: tuple[Ids, ...]
    """Tokens of every choice as it follows the prompt, without an end."""
    right: int
    """Index of the right choice."""

    @property
    def longest_choice(self) -> int:
        """Number of tokens of the longest choice."""
        return max(map(len, self.choice_ids))

    @property
    def requests(self) -> list[ScoreRequest]:
        """One request for the logprobs of each choice."""
        return [
            ScoreRequest(prompt_ids=self.prompt_ids, completion_ids=ids) for ids in self.choice_ids
        ]

    def probabilities(self, sums: Sequence[float], unit: LengthUnit) -> list[float] | None:
        """Return the probability of every choice; None if no choice has any.

        Args:
            sums: log-likelihoods of the choices, in nats.
            unit: length that each is divided by.
        """
        length = LENGTHS[unit]
        scores = [
            total / length(text, ids)
            for total, text, ids in zip(sums, self.choices, self.choice_ids, strict=True)
        ]
        highest = max(scores)
        if not math.isfinite(highest) or any(map(math.isnan, scores)):
            return None
        weights = [math.exp(score - highest) for score in scores]
        return [weight / math.fsum(weights) for weight in weights]


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationSuite(PromptSuite):
    """Multiple-choice items, each worth its negated Brier score."""

    kind: ClassVar[str] = "calibration"
    scale: ClassVar[ScoreScale] = ScoreScale(range=BRIER, graded=True, unit="of Brier score")
    has_figures: ClassVar[bool] = True

    choice_items: tuple[ChoiceItem, ...] = ()
    """The items as tokens, in the order of ``prompts``."""
    normalise: LengthUnit = "none"
    """Length that a choice's log-likelihood is divided by."""
    bins: int = 15
    """Bins of the expected calibration error."""

    @classmethod
    def of_entry(cls, entry: SuiteEntry) -> Self:
        """Read the items and check every choice."""
        spec, where = entry.spec, f"{entry.where}.calibration"
        source = spec.calibrated
        assert source is not None, "the check of the source"
        columns = (source.choices, source.answer)
        check_rows(source, (), spec.name, where, reads=lambda column: column in columns)
        prompts = read_items(spec.name, source, spec.items, entry.schemes, None, where)
        return cls(
            name=spec.name,
            role=spec.role,
            margin=spec.margin,
            budget=entry.config.gate.budget_of(spec),
            prompts=prompts,
            choice_items=tuple(choice_item_of(prompt, source, entry.encoder) for prompt in prompts),
            normalise=source.normalise,
            bins=source.bins,
        )

    @classmethod
    def stated_range(cls, spec: SuiteDemands, metric: Sequence[RewardConfig]) -> Range | None:
        """Return the range of a negated Brier score."""
        return BRIER

    @classmethod
    def reading(cls, spec: SuiteConfig) -> str:
        """Name the score."""
        return "negated Brier score"

    @classmethod
    def side_sentence(cls, results: ItemResults) -> str:
        """Say how often the likeliest choice is right, and how far from that its probability is."""
        if not results.beside:
            return ""
        return (
            f"accuracy {100 * results.beside[ACCURACY]:.1f}%, expected calibration error "
            f"{results.beside[CALIBRATION_ERROR]:.3f} on {len(results.values)} items"
        )

    @property
    def scores_texts(self) -> bool:
        """True: choices are scored, not sampled."""
        return True

    def content(self) -> Mapping[str, Any]:
        """Return the items, the right choices, and the length that choices are compared by."""
        items = [
            [prompt.id, rendered(prompt), item.choices, item.right]
            for prompt, item in zip(self.prompts, self.choice_items, strict=True)
        ]
        return {"items": items, "normalise": self.normalise}

    def chosen(self, places: Sequence[int]) -> dict[str, Any]:
        """Return the items at some places."""
        return {
            "prompts": tuple(self.prompts[i] for i in places),
            "choice_items": tuple(self.choice_items[i] for i in places),
        }

    def check_fit(self, encoder: PromptEncoder, max_model_len: int) -> None:
        """Raise UserError for an item that the context cannot hold with its longest choice."""
        for prompt, item in zip(self.prompts, self.choice_items, strict=True):
            # An engine scores a choice by generating one token after it.
            needed = len(item.prompt_ids) + item.longest_choice + 1
            if needed > max_model_len:
                raise UserError(
                    f"suite {self.name!r}: the prompt and its longest choice take {needed} tokens, the "
                    f"engines hold {max_model_len}",
                    where=prompt.label,
                    remedy="shorten the item or take it out, or raise rollouts.max_model_len",
                )

    def probe(self, encoder: PromptEncoder) -> Ids:
        """Return the first item with its first choice."""
        return (*self.choice_items[0].prompt_ids, *self.choice_items[0].choice_ids[0])

    def measure(
        self, engine: RolloutEngine, encoder: PromptEncoder, snapshot: SnapshotId, seed: int
    ) -> ItemResults:
        """Score every choice of every item."""
        items = [
            replace(item, prompt_ids=encoder.reread(prompt, item.prompt_ids, item.longest_choice))
            for prompt, item in zip(self.prompts, self.choice_items, strict=True)
        ]
        requests = [request for item in items for request in item.requests]
        sums = map(math.fsum, engine.score(requests))
        probabilities = [
            item.probabilities(list(islice(sums, len(item.choices))), self.normalise)
            for item in self.choice_items
        ]
        scores = list(map(_item_score, self.choice_items, probabilities))
        tokens = sum(len(request.completion_ids) for request in requests)
        results = replace(
            self.results(snapshot, scores, tokens, self.shown),
            probabilities=tuple(map(_right_first, self.choice_items, probabilities)),
        )
        return replace(results, beside=self.beside(results, [results]))

    def beside(self, whole: ItemResults, parts: Sequence[ItemResults]) -> Mapping[str, float]:
        """Return accuracy and expected calibration error; neither is a mean over parts."""
        return figures(whole.probabilities, self.bins)


def figures(probabilities: Sequence[Sequence[float]], bins: int) -> dict[str, float]:
    """Return the accuracy and the expected calibration error of some items; empty without items.

    The error is ``sum_b n_b / n |accuracy_b - confidence_b|`` over bins of equal width of the likeliest
    choice's probability, each closed above (Naeini et al. 2015, AAAI; Guo et al. 2017, arXiv 1706.04599,
    equation 3). Choices that are equally likely share the answer.

    Args:
        probabilities: by item, those of its choices, the right one first. Items without any do not count.

    >>> figures([(0.75, 0.25), (0.25, 0.75)], bins=2)
    {'accuracy': 0.5, 'expected calibration error': 0.25}
    """
    binned: dict[int, list[tuple[float, float]]] = {}
    for item in filter(None, probabilities):
        confidence = max(item)
        share = (item[0] == confidence) / item.count(confidence)
        number = max(0, math.ceil(confidence * bins - 1e-9) - 1)
        binned.setdefault(number, []).append((share, confidence))
    items = sum(map(len, binned.values()))
    if not items:
        return {}
    rights = [math.fsum(right for right, _ in members) for members in binned.values()]
    gaps = [
        abs(right - math.fsum(confidence for _, confidence in members))
        for right, members in zip(rights, binned.values(), strict=True)
    ]
    return {ACCURACY: math.fsum(rights) / items, CALIBRATION_ERROR: math.fsum(gaps) / items}


def brier(probabilities: Sequence[float], right: int) -> float:
    """Return the Brier score of one item: 0 for a sure and right choice, 2 for a sure and wrong one.

    >>> brier([0.5, 0.25, 0.25], right=0)
    0.375
    """
    return math.fsum((p - (k == right)) ** 2 for k, p in enumerate(probabilities))


def choice_item_of(prompt: Prompt, source: CalibrationConfig, encoder: PromptEncoder) -> ChoiceItem:
    """Return an item as tokens.

    Raises:
        UserError: its choices or its answer cannot be used; names the row.
    """
    choices = _choices_of(prompt, source)
    right = _right_of(prompt, source, choices)
    prompt_ids = encoder.encode(prompt)
    choice_ids = tuple(_choice_tokens(prompt, prompt_ids, choices, encoder))
    for second, ids in enumerate(choice_ids):
        if ids in choice_ids[:second]:
            raise _unusable(
                prompt,
                f"choices {choice_ids.index(ids)} and {second} are the same tokens: "
                f"{choices[second]!r}",
                "give the item choices that differ by more than blanks",
            )
    return ChoiceItem(prompt_ids=prompt_ids, choices=choices, choice_ids=choice_ids, right=right)


def _choices_of(prompt: Prompt, source: CalibrationConfig) -> tuple[str, ...]:
    choices = _column(prompt, source.choices, "choices")
    if not isinstance(choices, list | tuple):
        raise _unusable(
            prompt,
            f"column {source.choices!r} holds a {type(choices).__name__}, expected a list of texts",
            'write the choices as ["yes", "no"]',
        )
    for number, choice in enumerate(choices):
        if not isinstance(choice, str):
            raise _unusable(
                prompt,
                f"choice {number} is a {type(choice).__name__}, expected a text: {choice!r}",
                f"write it as {str(choice)!r}",
            )
        if choice in choices[:number]:
            raise _unusable(
                prompt,
                f"choices {choices.index(choice)} and {number} are the same: {choice!r}",
                "take one of them out, and correct the answer's index",
            )
    if len(choices) < 2:
        raise _unusable(
            prompt,
            f"the item has {len(choices)} choice{'' if len(choices) == 1 else 's'}, at least 2 are needed",
            "give it the wrong choices too",
        )
    return tuple(choices)


def _right_of(prompt: Prompt, source: CalibrationConfig, choices: Sequence[str]) -> int:
    right = _column(prompt, source.answer, "answer")
    if isinstance(right, bool) or not isinstance(right, int):
        index = f", here {choices.index(right)}" if right in choices else ""
        raise _unusable(
            prompt,
            f"the answer is {right!r}, expected the index of a choice",
            f"write the index of the right choice, 0 for the first{index}",
        )
    if not 0 <= right < len(choices):
        raise _unusable(
            prompt,
            f"the answer is {right}, and the item has choices 0 to {len(choices) - 1}",
            "write the index of the right choice, 0 for the first",
        )
    return right


def _column(prompt: Prompt, column: str, setting: str) -> Any:
    if column not in prompt.columns:
        hint = nearest(column, sorted(prompt.columns))
        raise _unusable(prompt, f"no column {column!r}", f"{hint}; set calibration.{setting}")
    return prompt.columns[column]


def _choice_tokens(
    prompt: Prompt, prompt_ids: Ids, choices: Sequence[str], encoder: PromptEncoder
) -> Iterator[Ids]:
    """Yield the tokens of every choice behind the prompt, as a round would learn it, without its end."""
    for number, choice in enumerate(choices):
        try:
            if prompt.messages is None:
                ids = text_answer(prompt.text or "", prompt_ids, choice, encoder)
            else:
                turn = {"role": "assistant", "content": choice}
                tools = tools_of(prompt.columns)
                ids = chat_answer(prompt.messages, prompt_ids, [turn], encoder, tools)
        except TemplateRefusal as error:
            what = f"choice {number} is refused by the chat template: {error}"
            raise _unusable(
                prompt, what, "give the item choices that the model can be told"
            ) from error
        except UnfitAnswer:
            ids = ()
        if ids and ids[-1] in encoder.eos_ids:
            ids = ids[:-1]
        if not ids:
            what = f"choice {number} has no tokens: {choice!r}"
            raise _unusable(prompt, what, "write out every choice")
        yield ids


def _unusable(prompt: Prompt, what: str, remedy: str) -> UserError:
    return UserError(what, where=prompt.label, remedy=remedy)


def _item_score(item: ChoiceItem, probabilities: Sequence[float] | None) -> ItemScore:
    """Return the value of an item, with its likeliest choice for people to look at."""
    if probabilities is None:
        failed = Completion.failed("no choice has a probability")
        return ItemScore(value=None, status="failed", detail=failed.detail, completion=failed)
    likeliest = max(range(len(probabilities)), key=probabilities.__getitem__)
    text = f"{item.choices[likeliest]} ({100 * probabilities[likeliest]:.0f}%)"
    return ItemScore(
        value=0.0 - brier(probabilities, item.right),
        status="scored",
        detail=None,
        completion=Completion(token_ids=(), logprobs_T=(), text=text, finish_reason="stop"),
    )


def _right_first(item: ChoiceItem, probabilities: Sequence[float] | None) -> tuple[float, ...]:
    if probabilities is None:
        return ()
    right = item.right
    return (probabilities[right], *probabilities[:right], *probabilities[right + 1 :])

"""Conversion of a file's rows into examples, from the formats that TRL reads, plain or conversational.

    pairs           prompt, chosen, rejected; or chosen and rejected that begin alike; maybe margin
    ratings         prompt, completion, label; or pairs, whose sides are then rated
    demonstrations  prompt, completion; or messages, which end with the answer or the episode
    texts           text

Source: TRL's "Dataset formats and types". Nothing is tokenized here. A row that cannot be used raises
`Unusable`, with a reason that many rows can share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from math import isfinite, nan
from typing import Any

from align.algorithms.base import Material
from align.config.data import ExamplesConfig, columns_of
from rollouts.chat.messages import RESULTS, BadMessages, says_something, turns_of
from rollouts.types import Message

Messages = tuple[Message, ...]
Content = str | Messages
"""Plain text, or chat turns."""
Values = Mapping[str, Any]
"""Columns of one row."""


class Unusable(Exception):
    """Error for a row that cannot be learned from; the message is the reason without the row's values."""

    def __init__(self, reason: str, detail: str | None = None) -> None:
        """Keep the reason, and as ``detail`` the value of this row."""
        super().__init__(reason)
        self.detail = detail


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Answer to an example's prompt."""

    content: Content
    advantage: float
    """Direction of learning: +1 makes the answer likelier, -1 less likely."""
    margin: float = 0.0
    """Difference in reward between a pair's chosen answer and the rejected one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """Prompt with the answers that are learnt from together."""

    prompt: Content
    answers: tuple[Answer, ...]


def pairs(values: Values, config: ExamplesConfig) -> list[Example]:
    """Make one example of two answers, the chosen one first."""
    prompt, chosen, rejected = _sides(values, config)
    if chosen == rejected:
        raise Unusable("equal sides")
    try:
        margin = float(0.0 if (value := values.get(config.margin)) is None else value)
    except (TypeError, ValueError):
        margin = nan
    if not isfinite(margin):
        raise Unusable(f"{config.margin!r} is not a number")
    better = Answer(content=chosen, advantage=1.0, margin=margin)
    return [Example(prompt=prompt, answers=(better, Answer(content=rejected, advantage=-1.0)))]


def ratings(values: Values, config: ExamplesConfig) -> list[Example]:
    """Make one example of a rated answer, or two of a pair."""
    if config.completion not in values and config.chosen in values:
        (pair,) = pairs(values, config)
        return [Example(prompt=pair.prompt, answers=(side,)) for side in pair.answers]
    prompt, content = _prompt(values, config), _content(values, config.completion)
    if config.label not in values:
        raise Unusable(_nothing_in(values, config.label))
    advantage = LABELS.get(str(values[config.label]).lower())
    if advantage is None:
        raise Unusable(f"{config.label!r} is not true or false")
    return [Example(prompt=prompt, answers=(Answer(content=content, advantage=advantage),))]


def demonstrations(values: Values, config: ExamplesConfig) -> list[Example]:
    """Make one example of one answer: the completion, or the end of a conversation.

    That is the assistant's last turn, with the calls and results before it that belong to the same answer;
    with ``turns: all`` it is all that follows the first question.
    """
    if config.completion in values or config.messages not in values:
        prompt, content = _prompt(values, config), _content(values, config.completion)
    else:
        turns = _content(values, config.messages)
        if isinstance(turns, str):
            raise Unusable(f"{config.messages!r} has no messages")
        if turns[-1]["role"] != "assistant":
            raise Unusable("the last message is not the assistant's")
        start = _answer_start(turns) if config.turns == "last" else _first_answer(turns)
        prompt, content = turns[:start], turns[start:]
        if not prompt:
            raise Unusable(f"no prompt before the answer in {config.messages!r}")
    return [Example(prompt=prompt, answers=(Answer(content=content, advantage=1.0),))]


def _answer_start(turns: Messages) -> int:
    """Return the index of the turn with which the last answer begins: its first call, if it has any."""
    start = len(turns) - 1
    while True:
        calling = start - 1
        while calling >= 0 and turns[calling]["role"] in RESULTS:
            calling -= 1
        is_call = 0 <= calling < start - 1 and turns[calling]["role"] == "assistant"
        if not is_call:
            return start
        start = calling


def _first_answer(turns: Messages) -> int:
    """Return the index of the assistant's first turn that answers one; 0 if there is none."""
    answers = (i for i, turn in enumerate(turns) if i and turn["role"] == "assistant")
    return next(answers, 0)


def as_chat(example: Example) -> Example:
    """Turn the texts of an example into a chat: the prompt is the user's, an answer the assistant's."""
    prompt = example.prompt
    if not isinstance(prompt, str):
        return example
    answers = tuple(
        replace(answer, content=answer.content.strip())
        if isinstance(answer.content, str)
        else answer
        for answer in example.answers
    )
    return Example(prompt=({"role": "user", "content": prompt},), answers=answers)


def text(values: Values, config: ExamplesConfig) -> str:
    """Return the document of a row."""
    content = _content(values, config.text)
    if not isinstance(content, str):
        raise Unusable(f"{config.text!r} is not text")
    return content


FORMS: dict[Material, Callable[[Values, ExamplesConfig], list[Example]]] = {
    "pairs": pairs,
    "ratings": ratings,
    "demonstrations": demonstrations,
}


def _sides(values: Values, config: ExamplesConfig) -> tuple[Content, Content, Content]:
    """Return prompt, chosen and rejected answer; as in TRL, whole conversations contain their prompt."""
    chosen, rejected = _content(values, config.chosen), _content(values, config.rejected)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise Unusable("one side is text, the other messages")
    whole = any(
        not isinstance(side, str) and side[0]["role"] != "assistant" for side in (chosen, rejected)
    )
    has_prompt = config.template is not None or values.get(config.prompt) is not None
    if has_prompt and not whole:
        return _prompt(values, config), chosen, rejected
    if chosen == rejected:
        raise Unusable("equal sides")
    shared = common_prompt(chosen, rejected)
    if not shared:
        raise Unusable(
            f"no prompt: {_nothing_in(values, config.prompt)}, and {config.chosen!r} and "
            f"{config.rejected!r} do not begin alike"
        )
    sides = ((chosen, config.chosen), (rejected, config.rejected))
    better, worse = [_not_empty(side[len(shared) :], repr(column)) for side, column in sides]
    return _asking(shared), better, worse


def common_prompt(chosen: Content, rejected: Content) -> Content:
    """Return the common beginning of two answers: whole turns, or text up to the last space before they
    differ.

    TRL divides texts at the first character that differs, so that "... blue" and "... black" share a "b".
    A prompt that ends within a word has other tokens than any prompt that is sampled from.

    >>> common_prompt("The sky is blue.", "The sky is black.")
    'The sky is'
    """
    same = list(takewhile(lambda two: two[0] == two[1], zip(chosen, rejected, strict=False)))
    if not isinstance(chosen, str):
        return chosen[: len(same)]
    end = len(same)
    while end and not all(side[end : end + 1].isspace() for side in (chosen, str(rejected))):
        end -= 1
    return chosen[:end]


def _prompt(values: Values, config: ExamplesConfig) -> Content:
    if config.template is not None:
        for column in columns_of(config.template):
            if values.get(column) is None:
                raise Unusable(_nothing_in(values, column))
        prompt: Content = config.template.format_map(values)
    elif values.get(config.prompt) is None:
        raise Unusable(f"no prompt: {_nothing_in(values, config.prompt)}")
    else:
        prompt = _content(values, config.prompt)
    return _asking(prompt)


def _asking(prompt: Content) -> Content:
    if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
        raise Unusable("the prompt ends with an answer")
    return _not_empty(prompt, "the prompt")


def _content(values: Values, column: str) -> Content:
    """Return a column as text or as chat turns."""
    value = values.get(column)
    if column not in values:
        raise Unusable(_nothing_in(values, column))
    if isinstance(value, str):
        return _not_empty(value, repr(column))
    if value is None or (isinstance(value, list | tuple) and not value):
        raise Unusable(f"{column!r} is empty")
    if not isinstance(value, list | tuple) or not all(isinstance(turn, Mapping) for turn in value):
        raise Unusable(f"{column!r} is not text")
    try:
        return _not_empty(turns_of(value, column), repr(column))
    except BadMessages as error:
        raise Unusable(str(error)) from error


def _not_empty(content: Content, what: str) -> Content:
    has_content = content.strip() if isinstance(content, str) else any(map(says_something, content))
    if not has_content:
        raise Unusable(f"{what} is empty")
    return content


def _nothing_in(values: Values, column: str) -> str:
    """Say that a row lacks a column, with the columns that it has, or that the column's value is
    missing."""
    if column in values:
        return f"nothing in column {column!r}"
    return f"no column {column!r} among {', '.join(map(repr, values)) or 'none'}"


LABELS = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": -1.0, "0": -1.0, "0.0": -1.0}
"""Advantages by label, in the spellings of files without a boolean type."""

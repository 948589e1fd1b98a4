"""Encoding of examples: the prompt exactly as engines read it, the answer as they would sample it.

A file is thus learnt in the same context that rollouts have. An answer ends with a token that ends
sampling, since a model stops with that token only if it learns to (see `rollouts.chat.answers`). In an
answer of several turns only the assistant's are learnt; what tools returned and users said is observed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from align.algorithms.rows import Row
from align.data.examples.forms import Content, Example, Unusable
from align.data.examples.stream import Unit
from rollouts.chat.answers import UnfitAnswer, chat_episode, ended, text_answer
from rollouts.chat.messages import BadMessages, check_tools, tools_of
from rollouts.errors import TemplateRefusal, UserError
from rollouts.prompts import PromptEncoder, content_id
from rollouts.types import Prompt, TokenSpan

Ids = tuple[int, ...]
Spans = tuple[TokenSpan, ...]
OVER_LONG = "over-long"
"""Beginning of the reason for rows that do not fit the context."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """Unit of rows, encoded."""

    unit: Unit
    num_cut: int
    """Number of its answers that were truncated to fit the context."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """Text of a file, with its source."""

    text: str = field(repr=False)
    location: str = ""
    """File and line that the text was read from."""
    name: str
    """Hash of 16 hex digits that depends on the text alone."""


def encode(
    example: Example,
    encoder: PromptEncoder,
    *,
    context: int,
    cut: bool,
    round: str,
    columns: Mapping[str, Any],
    source_line: str = "",
) -> Encoded:
    """Encode one example as rows of at most ``context`` tokens, prompt included.

    Args:
        cut: truncate answers that do not fit.
        round: name of the round, for the prompt and its rows.
        columns: columns of the prompt, which rewards of later rounds may read.
        source_line: file and line of the row, for messages.

    Raises:
        Unusable: a row is too long and may not be cut, or nothing is left to learn.
        UserError: the prompt has messages and the model has no chat template.
    """
    prompt = replace(_prompt(example.prompt, columns, round), location=source_line)
    prompt_ids = _prompt_ids(prompt, encoder)
    answers = [_answer_ids(prompt, prompt_ids, a.content, encoder) for a in example.answers]
    room = context - len(prompt_ids)
    longest = max(len(ids) for ids, _ in answers)
    if room < 1 or (not cut and longest > room):
        raise Unusable(f"{OVER_LONG} for {context} tokens", f"{len(prompt_ids) + longest} tokens")
    fitting = [_cut(ids, observed, room) for ids, observed in answers]
    if len({ids for ids, _ in fitting}) < len(fitting):
        raise Unusable("equal sides")
    rows = tuple(
        _row(prompt_ids, ids, answer.advantage, round, answer.margin, observed)
        for (ids, observed), answer in zip(fitting, example.answers, strict=True)
    )
    sides = [(answer.content, answer.advantage) for answer in example.answers]
    unit = Unit(id=_id([example.prompt, sides]), prompt=prompt, rows=rows, location=source_line)
    return Encoded(unit=unit, num_cut=sum(len(ids) > room for ids, _ in answers))


def windows(
    documents: Iterable[Document],
    encoder: PromptEncoder,
    *,
    context: int,
    round: str,
    pack: bool = True,
) -> Iterator[Unit]:
    """Cut documents one after another into windows of ``context`` tokens; the last may be shorter.

    Without ``pack`` every document begins a new window.

    Each document ends with the end-of-sequence token. A window begins with the last token of the window
    before, as its context, so every token except the very first is predicted exactly once.
    """
    assert context > 1, "a window needs a token and one before it"
    ids: list[int] = []
    # The document of every token.
    sources: list[Document] = []
    for document in documents:
        tokens = ended(encoder.encode(Prompt(id="", text=document.text)), encoder)
        ids.extend(tokens)
        sources.extend([document] * len(tokens))
        start = 0
        while len(ids) - start >= context:
            yield _window(ids[start : start + context], sources[start : start + context], round)
            start += context - 1
        del ids[:start], sources[:start]
        if not pack:
            if len(ids) > 1:
                yield _window(ids, sources, round)
            ids, sources = [], []
    if len(ids) > 1:
        yield _window(ids, sources, round)


def _window(ids: Sequence[int], sources: Sequence[Document], round: str) -> Unit:
    row = _row(tuple(ids[:1]), tuple(ids[1:]), 1.0, round)
    # The first token is only context: the window before has it as a target.
    names = dict.fromkeys(document.name for document in sources[1:])
    return Unit(
        id=_id(list(ids)),
        prompt=None,
        rows=(row,),
        location=sources[1].location,
        documents=tuple(names),
    )


def _cut(ids: Ids, observed: Spans, length: int) -> tuple[Ids, Spans]:
    """Return at most ``length`` tokens of an answer, the last of which is the assistant's."""
    spans = [span for span in observed if span.start < length]
    if spans and spans[-1].end >= length:
        length = spans.pop().start
    return ids[:length], tuple(spans)


def _row(
    prompt_ids: Ids,
    completion_ids: Ids,
    advantage: float,
    round: str,
    margin: float = 0.0,
    observed: Spans = (),
) -> Row:
    return Row(
        prompt_ids=prompt_ids,
        completion_ids=completion_ids,
        observed=observed,
        advantage=advantage,
        source="new",
        round=round,
        margin=margin,
    )


def _prompt(content: Content, columns: Mapping[str, Any], round: str) -> Prompt:
    try:
        check_tools(content, columns)
        name = content_id(content)
    except BadMessages as error:
        raise Unusable(str(error)) from error
    except UnicodeEncodeError as error:
        raise Unusable("not valid Unicode") from error
    if isinstance(content, str):
        return Prompt(id=name, text=content, columns=columns, round=round)
    return Prompt(id=name, messages=content, columns=columns, round=round)


def _prompt_ids(prompt: Prompt, encoder: PromptEncoder) -> Ids:
    try:
        return encoder.encode(prompt)
    except UserError as error:
        # Without a chat template no row can be read; otherwise only this conversation is bad.
        if prompt.messages is not None and encoder.tokenizer.chat_template is None:
            raise
        reason = "refused by the tokenizer or its chat template"
        cause = f": {error.cause}" if isinstance(error.__cause__, TemplateRefusal) else ""
        raise Unusable(reason + cause) from error


def _answer_ids(
    prompt: Prompt, prompt_ids: Ids, answer: Content, encoder: PromptEncoder
) -> tuple[Ids, Spans]:
    """Return the tokens of the answer after these prompt tokens, with an ending token, and those of them
    that are not the assistant's."""
    try:
        if prompt.messages is not None:
            if isinstance(answer, str):
                answer = ({"role": "assistant", "content": answer},)
            tools = tools_of(prompt.columns)
            return chat_episode(prompt.messages, prompt_ids, answer, encoder, tools)
        if isinstance(answer, str):
            return text_answer(prompt.text or "", prompt_ids, answer, encoder), ()
    except UnfitAnswer as reason:
        raise Unusable(str(reason)) from reason
    except TemplateRefusal as error:
        raise Unusable(f"refused by the tokenizer or its chat template: {error}") from error
    raise Unusable("the prompt is text, the answer messages")


def _id(content: object) -> str:
    try:
        return content_id(json.dumps(content))
    except UnicodeEncodeError as error:
        raise Unusable("not valid Unicode") from error

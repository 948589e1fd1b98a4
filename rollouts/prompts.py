"""Prompts: read from a source, turned into token ids, and drawn in an order a restart repeats.

`load_prompts` reads and checks them all at once, so that a bad row is one clear message before
anything starts. `PromptEncoder` is the only place that knows the tokenizer. `PromptStream` deals
prompts out in reshuffled epochs. Nothing here samples.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from rollouts.errors import UserError, nearest
from rollouts.rows import Row, read_rows
from rollouts.types import Message, Prompt, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Scheme = Callable[[str], list[Prompt]]
"""From ``scheme://...`` to prompts with ids of their own; a `ValueError` says what is known."""


class PromptsLike(Protocol):
    """What `load_prompts` reads of a configuration."""

    @property
    def source(self) -> str: ...
    @property
    def column(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def limit(self) -> int | None: ...


def load_prompts(
    config: PromptsLike, schemes: Mapping[str, Scheme], round: str | None, source: Source
) -> list[Prompt]:
    """The distinct prompts of a source, in its order; of duplicates the first is kept.

    ``round`` and ``source`` are written on every prompt. Raises a `UserError` that names the file
    and line of the first bad row.
    """
    scheme = re.match(r"([a-z][a-z0-9+.-]*)://", config.source)
    if scheme is not None:
        found = _from_scheme(config.source, scheme[1], schemes)[: config.limit]
    else:
        rows = islice(read_rows(config.source, config.split), config.limit)
        found = [_prompt(row, config.column) for row in rows]
    if not found:
        raise UserError("holds no prompts", where=config.source)
    prompts = distinct(found)
    if len(prompts) < len(found):
        number = len(found) - len(prompts)
        logger.warning(
            "%s: %d of %d prompts are duplicates and are left out",
            config.source,
            number,
            len(found),
        )
    return [replace(prompt, round=round, source=source) for prompt in prompts]


def distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The first prompt of every id, in order."""
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.id, prompt)
    return list(first.values())


def content_id(content: str | Sequence[Message]) -> str:
    """16 hex digits that depend on the text or messages alone.

    Raises `UnicodeEncodeError` for text that is not valid Unicode (a lone surrogate).
    """
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _from_scheme(uri: str, scheme: str, schemes: Mapping[str, Scheme]) -> list[Prompt]:
    if scheme not in schemes:
        raise UserError(
            f"unknown kind of source {scheme}://", where=uri, remedy=nearest(scheme, list(schemes))
        )
    try:
        return schemes[scheme](uri)
    except ValueError as error:
        raise UserError(str(error), where=uri) from error


def _prompt(row: Row, column: str) -> Prompt:
    if column not in row.values:
        raise UserError(
            f"no column {column!r}",
            where=row.place,
            remedy=f"{nearest(column, list(row.values))}; set prompts.column",
        )
    value = row.values[column]
    columns = {name: other for name, other in row.values.items() if name != column}
    content = value if isinstance(value, str) else _messages(value, column, row.place)
    if not any(text.strip() for text in _texts(content)):
        raise UserError(f"the prompt in column {column!r} is empty", where=row.place)
    try:
        prompt_id = content_id(content)
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt is not valid Unicode: {error}", where=row.place) from error
    if isinstance(content, str):
        return Prompt(id=prompt_id, text=content, columns=columns)
    return Prompt(id=prompt_id, messages=content, columns=columns)


def _texts(content: str | Sequence[Message]) -> list[str]:
    return [content] if isinstance(content, str) else [message["content"] for message in content]


def _messages(value: Any, column: str, place: str) -> tuple[Message, ...]:
    """Chat turns as plain dicts; None values, which tables fill in, are left out."""
    if not isinstance(value, list | tuple):
        raise UserError(
            f"column {column!r} holds a {type(value).__name__}, expected text or messages",
            where=place,
        )
    for message in value:
        good = isinstance(message, Mapping) and {"role", "content"} <= message.keys()
        if not good or not all(isinstance(part, str | None) for part in message.values()):
            raise UserError(
                f"column {column!r} holds the message {message!r}",
                where=place,
                remedy='write messages as {"role": "user", "content": "..."}, all values text',
            )
    turns = tuple({k: v for k, v in message.items() if v is not None} for message in value)
    if any(not {"role", "content"} <= turn.keys() for turn in turns):
        raise UserError(f"column {column!r} holds a message without role or content", where=place)
    if turns and turns[-1]["role"] == "assistant":
        raise UserError(
            f"the last message in column {column!r} is the assistant's",
            where=place,
            remedy="a prompt ends with the turn that is to be answered; drop the answer",
        )
    return turns


class PromptEncoder:
    """Prompts to token ids and completions to text, as one tokenizer has it.

    Attributes:
        eos_ids: tokens that end a completion: the tokenizer's own, then ``extra_eos_ids`` (those a
            model's generation config adds).
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, extra_eos_ids: Iterable[int] = ()
    ) -> None:
        self.tokenizer = tokenizer
        own = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys([*own, *extra_eos_ids]))

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids [T] after which the completion starts.

        Raises a `UserError` for messages that the model's chat template cannot render.
        """
        if prompt.messages is not None:
            ids = self._render(prompt)
        else:
            assert prompt.text is not None
            ids = self._tokenize(prompt.text)
        if not ids:
            raise UserError(f"prompt {prompt.id!r} has no tokens: {prompt.text!r}")
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _tokenize(self, text: str) -> tuple[int, ...]:
        """The text's ids with what the tokenizer puts before them (bos), not after (eos)."""
        full = list(self.tokenizer(text, verbose=False).input_ids)
        bare = list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
        for start in range(len(full) - len(bare), -1, -1):
            if full[start : start + len(bare)] == bare:
                return tuple(full[: start + len(bare)])
        return tuple(full)

    def _render(self, prompt: Prompt) -> tuple[int, ...]:
        import jinja2

        if self.tokenizer.chat_template is None:
            raise UserError(
                f"prompt {prompt.id!r} is a list of messages, but the model has no chat template",
                remedy="use a text column, or a model whose tokenizer has a chat template",
            )
        turns = [dict(message) for message in prompt.messages or ()]
        try:
            ids = self.tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise UserError(
                f"the chat template refuses prompt {prompt.id!r} (roles: {roles})", cause=str(error)
            ) from error
        return tuple(int(token) for token in ids)


class PromptStream:
    """Prompts in endless epochs; every epoch is a new permutation, fixed by the seed.

    The order comes from hashes of seed, epoch and prompt id, so it is the same on every machine
    and does not depend on the order the prompts were given in. A draw that crosses the end of an
    epoch can hold a prompt twice.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        self._prompts = sorted(prompts, key=lambda prompt: prompt.id)
        if not self._prompts:
            raise ValueError("a stream needs at least one prompt")
        self._seed = seed
        self._cursor = 0
        self._epoch = -1
        self._order: list[Prompt] = []

    def __len__(self) -> int:
        """Prompts in one epoch."""
        return len(self._prompts)

    @property
    def cursor(self) -> int:
        """Prompts taken so far: all that a restart has to know."""
        return self._cursor

    def seek(self, cursor: int) -> None:
        """Go where a stream stands that has taken ``cursor`` prompts."""
        if cursor < 0:
            raise ValueError(f"cursor {cursor} is negative")
        self._cursor = cursor

    def take(self, n: int) -> list[Prompt]:
        """The next ``n`` prompts."""
        taken = [self._at(position) for position in range(self._cursor, self._cursor + n)]
        self._cursor += len(taken)
        return taken

    def _at(self, position: int) -> Prompt:
        epoch, index = divmod(position, len(self._prompts))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = sorted(self._prompts, key=lambda prompt: self._draw(epoch, prompt.id))
        return self._order[index]

    def _draw(self, epoch: int, prompt_id: str) -> bytes:
        return hashlib.sha256(f"{self._seed}/{epoch}/{prompt_id}".encode()).digest()

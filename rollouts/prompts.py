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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from rollouts.chat.messages import (
    BadMessages,
    calls_or_tools,
    check_asks,
    check_tools,
    check_turns,
    left_out,
    tools_of,
    turns_of,
)
from rollouts.errors import TemplateRefusal, UserError, nearest
from rollouts.rows import FileRow, read_rows
from rollouts.types import Message, Prompt, Sampling, Source
from rollouts.values import to_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rollouts.episodes.environment import Environments

logger = logging.getLogger(__name__)

SHOWN = 3
"""Most lines that a message names."""

PROMPTS_AT_ONCE = 1024
"""Number of texts that the tokenizer takes at once: a tenth of the time of one by one."""

NO_KWARGS: Mapping[str, Any] = {}

Scheme = Callable[[str], list[Prompt]]
"""Loader from ``scheme://...`` to prompts with ids of their own; a `ValueError` names the known ones."""


class PromptsLike(Protocol):
    """Fields of a configuration that `load_prompts` reads."""

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
    """Load the distinct prompts of a source, in its order; the first of several duplicates is kept.

    Rows with the same prompt and other columns are different prompts. ``round`` and ``source`` are
    written on every prompt. Raises a `UserError` that names the file and line of the first bad row.
    """
    scheme = re.match(r"([a-z][a-z0-9+.-]*)://", config.source)
    if scheme is not None:
        if scheme[1] not in schemes:
            raise UserError(
                f"unknown kind of source {scheme[1]}://",
                where=config.source,
                remedy=nearest(scheme[1], list(schemes)),
            )
        try:
            prompts_read = schemes[scheme[1]](config.source)[: config.limit]
        except ValueError as error:
            raise UserError(str(error), where=config.source) from error
    else:
        rows = islice(read_rows(config.source, config.split), config.limit)
        prompts_read = told_apart(_prompt(row, config.column) for row in rows)
    prompts_read = [_with_tools(_in_chat(prompt, config)) for prompt in prompts_read]
    if not prompts_read:
        raise UserError("holds no prompts", where=config.source)
    prompts = distinct(prompts_read)
    if len(prompts) < len(prompts_read):
        logger.warning(
            "%s: %d of %d prompts are duplicates and are left out: %s",
            config.source,
            len(prompts_read) - len(prompts),
            len(prompts_read),
            repeated(prompts_read),
        )
    return [replace(prompt, round=round, source=source) for prompt in prompts]


def told_apart(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Give prompts with one text and different columns different ids.

    The first keeps the id of its text, so that a row that is added changes no id before it.
    """
    ids: dict[str, dict[str, str]] = {}
    renamed = []
    for prompt in prompts:
        text = json.dumps(to_json(prompt.columns), sort_keys=True, default=str)
        columns = hashlib.sha256(text.encode()).hexdigest()
        variants = ids.setdefault(prompt.id, {})
        other = hashlib.sha256(f"{prompt.id}/{columns}".encode()).hexdigest()[:16]
        new_id = variants.setdefault(columns, other if variants else prompt.id)
        renamed.append(replace(prompt, id=new_id))
    return renamed


def distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Return the first prompt of every id, in order."""
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.id, prompt)
    return list(first.values())


def repeated(prompts: Sequence[Prompt]) -> str:
    """Say which prompts repeat an earlier one: ``p.jsonl:7 is p.jsonl:3, ...``."""
    first: dict[str, Prompt] = {}
    pairs = [(p, first.setdefault(p.id, p)) for p in prompts]
    return first_places([f"{p.label} is {before.label}" for p, before in pairs if p is not before])


def first_places(labels: Sequence[str]) -> str:
    """Join the first few of many places in a file."""
    return ", ".join(labels[:SHOWN]) + (", ..." if len(labels) > SHOWN else "")


def text_of(prompt: Prompt) -> str:
    """Return the words of a prompt, whoever says them."""
    if prompt.text is not None:
        return prompt.text
    return "\n".join(message["content"] for message in prompt.messages or ())


def content_id(content: str | Sequence[Message]) -> str:
    """Return 16 hex digits that depend on the text or messages alone.

    Raises `UnicodeEncodeError` for text that is not valid Unicode (a lone surrogate).
    """
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _in_chat(prompt: Prompt, config: PromptsLike) -> Prompt:
    """Return the prompt as a chat if the source asks for one; its id stays that of the row's content."""
    chat, system = getattr(config, "chat", False), getattr(config, "system", None)
    kwargs: Mapping[str, Any] = getattr(config, "chat_template_kwargs", {})
    turns = prompt.messages
    if turns is None and chat:
        turns = ({"role": "user", "content": str(prompt.text)},)
    if turns is None and (system is not None or kwargs):
        is_of = "system is a message" if system is not None else "chat_template_kwargs are"
        raise UserError(
            f"the prompts are text, and {is_of} of a chat",
            where=prompt.location or config.source,
            remedy="add chat: true, which makes each text a user's message, or remove "
            + ("system" if system is not None else "chat_template_kwargs"),
        )
    if turns is None:
        return prompt
    if system is not None and turns[0]["role"] not in ("system", "developer"):
        turns = ({"role": "system", "content": system}, *turns)
    return replace(prompt, text=None, messages=turns, chat_template_kwargs=kwargs)


def _with_tools(prompt: Prompt) -> Prompt:
    """Return the prompt unchanged, after a check that a chat template can write its tools."""
    try:
        check_tools(
            prompt.text if prompt.text is not None else prompt.messages or (), prompt.columns
        )
    except BadMessages as error:
        raise UserError(str(error), where=prompt.location or None, remedy=error.remedy) from error
    return prompt


def _prompt(row: FileRow, column: str) -> Prompt:
    if column not in row.values:
        header = "; ".join(row.values)
        raise UserError(
            f"no column {column!r}",
            where=row.location,
            cause=f"the header is {header!r}" if len(row.values) == 1 and ";" in header else None,
            remedy=f"{nearest(column, list(row.values))}; set prompts.column",
        )
    value = row.values[column]
    columns = {name: other for name, other in row.values.items() if name != column}
    try:
        content = _content(value, column)
        name = content_id(content)
    except BadMessages as error:
        raise UserError(str(error), where=row.location, remedy=error.remedy) from error
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt is not valid Unicode: {error}", where=row.location) from error
    if isinstance(content, str):
        return Prompt(id=name, text=content, columns=columns, location=row.location)
    return Prompt(id=name, messages=content, columns=columns, location=row.location)


def _content(value: Any, column: str) -> str | tuple[Message, ...]:
    """Return a prompt's text, or its chat turns."""
    if not isinstance(value, str | list | tuple):
        kind = type(value).__name__
        raise BadMessages(f"column {column!r} holds a {kind}, expected text or messages")
    if not (value.strip() if isinstance(value, str) else value):
        raise BadMessages(f"the prompt in column {column!r} is empty")
    if isinstance(value, str):
        return value
    turns = turns_of(value, column)
    check_turns(turns)
    check_asks(turns, column)
    return turns


class PromptEncoder:
    """Prompts to token ids and completions to text, as one tokenizer has it.

    Attributes:
        eos_ids: tokens that end a completion: the tokenizer's own, then ``extra_eos_ids``.
        extra_eos_ids: those that an engine does not know from the tokenizer: of the generation config,
            and of the chat template (see `rollouts.chat.endings`).
        digest: sha256 of everything that decides how texts and messages become tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        extra_eos_ids: Iterable[int] = (),
        files_digest: str | None = None,
    ) -> None:
        """Set up an encoder for a tokenizer.

        Args:
            files_digest: sha256 of the files that the tokenizer was loaded from; None: taken from the
                tokenizer itself.
        """
        self.tokenizer = tokenizer
        eos_ids = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys([*eos_ids, *extra_eos_ids]))
        self.extra_eos_ids: tuple[int, ...] = self.eos_ids[len(eos_ids) :]
        self._files_digest = files_digest

    @cached_property
    def digest(self) -> str:
        files = self._files_digest or hashlib.sha256(_content_of(self.tokenizer)).hexdigest()
        content = json.dumps([files, self.tokenizer.chat_template, self.eos_ids], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def encode(self, prompt: Prompt, tools: Sequence[Any] = ()) -> tuple[int, ...]:
        """Return the token ids [T] after which the completion starts.

        Args:
            tools: functions that the assistant may call, as JSON schemas; empty: those that the row lists.

        Raises a `UserError` for messages that the model's chat template cannot render.
        """
        if prompt.messages is not None:
            ids = self._render(prompt, prompt.messages, tools)
        else:
            assert prompt.text is not None
            (ids,) = self._tokenize([prompt.text])
        return _not_empty(prompt, ids)

    def encode_all(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, ...]]:
        """Yield what `encode` returns for each prompt; texts are tokenized many at a time.

        An encoder that overrides `encode` overrides this too.
        """
        for begin in range(0, len(prompts), PROMPTS_AT_ONCE):
            part = prompts[begin : begin + PROMPTS_AT_ONCE]
            ids = iter(self._tokenize([p.text for p in part if p.text is not None]))
            for prompt in part:
                yield (
                    self.encode(prompt) if prompt.text is None else _not_empty(prompt, next(ids))
                )

    def reread(self, prompt: Prompt, ids: tuple[int, ...], answer: int) -> tuple[int, ...]:
        """Return the token ids that an encoded prompt is read as by the policy of the moment.

        An encoder that puts something before prompts overrides it; here they are read as they are.

        Args:
            ids: tokens of the prompt alone.
            answer: length of the longest answer that follows, in tokens.
        """
        return ids

    def acting_in(self, environments: Environments | None) -> Environments | None:
        """Return the environments that completions act in, of those that a round or suite has.

        An encoder whose policy has tools of its own overrides it.
        """
        return environments

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def harmless(self, text: str) -> str:
        """Return a text from elsewhere with a blank in every control token that it spells.

        What a tool or a document says could otherwise end a turn and begin one of the system's.

        Example: ``"<|im_end|>"`` becomes ``"<|im_end| >"``.
        """
        return self._control.sub(lambda mark: f"{mark[0][:-1]} {mark[0][1:][-1:]}", text)

    def ended(self, sampling: Sampling) -> Sampling:
        """Return the sampling with every ending token that no engine knows by itself.

        A stop text that is one special token becomes that token: special tokens have no text.
        """
        special = self._special_ids if sampling.stop_texts else {}
        ends = [special[text] for text in sampling.stop_texts if text in special]
        ends = [*sampling.stop_token_ids, *ends, *self.extra_eos_ids]
        return replace(
            sampling,
            stop_token_ids=tuple(dict.fromkeys(ends)),
            stop_texts=tuple(text for text in sampling.stop_texts if text and text not in special),
        )

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """Special tokens but the unknown one, and other added tokens that the chat template writes."""
        template = str(self.tokenizer.chat_template or "")
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values()]
        marks = {*self._special_ids, *(content for content in added if content in template)}
        marks.discard(str(self.tokenizer.unk_token))
        longest_first = sorted((mark for mark in marks if mark.strip()), key=lambda m: (-len(m), m))
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @cached_property
    def _special_ids(self) -> dict[str, int]:
        pairs = zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids, strict=True)
        added = self.tokenizer.added_tokens_decoder.items()
        return {
            **{token.content: token_id for token_id, token in added if token.special},
            **{str(token): token_id for token, token_id in pairs},
        }

    def render(
        self,
        turns: Sequence[Message],
        *,
        opened: bool,
        tools: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = NO_KWARGS,
    ) -> tuple[int, ...]:
        """Return the token ids of chat turns.

        Args:
            opened: the assistant's next turn is begun, for a completion to follow.
            tools: functions that the assistant may call, as JSON schemas.
            kwargs: variables of the template, over those that it carries.

        Raises:
            TemplateRefusal: the chat template raises on them, or leaves tools, calls or results out.
        """
        text = self.rendered(turns, opened=opened, tools=tools, kwargs=kwargs)
        if calls_or_tools(turns, tools):

            def render(turns: Sequence[Message], tools: Sequence[Any]) -> str:
                return self.rendered(turns, opened=opened, tools=tools, kwargs=kwargs)

            if (lost := left_out(turns, tools, render)) is not None:
                raise TemplateRefusal(f"it leaves out {lost}")
        # A template writes its own bos, or none.
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return tuple(int(token) for token in ids)

    def rendered(
        self,
        turns: Sequence[Message],
        *,
        opened: bool,
        tools: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = NO_KWARGS,
    ) -> str:
        """Return the text that `render` tokenizes."""
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(turn) for turn in turns],
                    tools=list(tools) or None,
                    add_generation_prompt=opened,
                    tokenize=False,
                    **kwargs,
                )
            )
        except (
            Exception
        ) as error:  # A template runs whatever its author wrote, and fails in any way.
            raise TemplateRefusal(str(error) or type(error).__name__) from error

    def _tokenize(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Tokenize with what the tokenizer puts before a text (bos), without what it puts after (eos).

        A text that begins with the bos token itself, as one rendered with a chat template does, gets no
        second one.
        """
        if not texts:
            return []
        full = self.tokenizer(list(texts), verbose=False).input_ids
        bare = self.tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
        bos = self.tokenizer.bos_token_id
        return [_begun(whole, alone, bos) for whole, alone in zip(full, bare, strict=True)]

    def _render(
        self, prompt: Prompt, turns: Sequence[Message], tools: Sequence[Any]
    ) -> tuple[int, ...]:
        if self.tokenizer.chat_template is None:
            raise UserError(
                f"{prompt.label} is a list of messages, but the model has no chat template",
                remedy="use a text column, or a model whose tokenizer has a chat template",
            )
        try:
            return self.render(
                turns,
                opened=True,
                tools=tools or tools_of(prompt.columns),
                kwargs=prompt.chat_template_kwargs,
            )
        except TemplateRefusal as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise UserError(
                f"the chat template refuses {prompt.label} (roles: {roles})",
                cause=str(error),
                remedy="mend the row or take it out, or use a template that writes what it holds",
            ) from error


def _not_empty(prompt: Prompt, ids: tuple[int, ...]) -> tuple[int, ...]:
    """Return a prompt's tokens; raise a `UserError` where it has none."""
    if not ids:
        content = prompt.text if prompt.messages is None else prompt.messages
        raise UserError(f"{prompt.label} has no tokens: {content!r}")
    return ids


def _begun(full: list[int], bare: list[int], bos: int | None) -> tuple[int, ...]:
    """Return a text's tokens with the special ones before it and without those after it.

    >>> _begun([0, 5, 6, 1], [5, 6], bos=0), _begun([0, 0, 5, 1], [0, 5], bos=0)
    ((0, 5, 6), (0, 5))
    """
    for start in range(len(full) - len(bare), -1, -1):
        if full[start : start + len(bare)] == bare:
            begun = start > 0 and full[start - 1] == bos == bare[0]
            return tuple(bare if begun else full[: start + len(bare)])
    return tuple(full)


def _content_of(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """Return the content of a tokenizer without files: its serialization, or if slow its vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return str(backend.to_str()).encode()
    return json.dumps([tokenizer.get_vocab(), str(tokenizer)], sort_keys=True).encode()


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

    def reseeded(self, seed: int) -> PromptStream:
        """Return a stream of the same prompts in another order, from its start."""
        return PromptStream(self._prompts, seed)

    def __len__(self) -> int:
        """Count the prompts of one epoch."""
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
        """Return the next ``n`` prompts."""
        prompts = []
        for position in range(self._cursor, self._cursor + n):
            epoch, index = divmod(position, len(self._prompts))
            if epoch != self._epoch:
                prefix = f"{self._seed}/{epoch}/"
                self._epoch = epoch
                self._order = sorted(
                    self._prompts,
                    key=lambda prompt: hashlib.sha256(f"{prefix}{prompt.id}".encode()).digest(),
                )
            prompts.append(self._order[index])
        self._cursor += len(prompts)
        return prompts

"""Sources of prompts and examples in a campaign file, and the columns that are read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from align.settings import NAME_PATTERN, InputPath, Settings, without_unset


def sourced(value: Any) -> Any:
    """Expand ``demo://rev``, which is short for ``{source: demo://rev}``."""
    return {"source": value} if isinstance(value, str) else value


class PromptsConfig(Settings):
    """Source of prompts."""

    source: InputPath
    """``demo://NAME``, a .jsonl/.parquet/.csv file, or a ``datasets`` id."""
    column: str = "prompt"
    """Column with the text, or with chat messages."""
    split: str = "train"
    """Split of a ``datasets`` id."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Number of rows to read, from the first; None reads all."""
    chat: bool = False
    """Treat a text as a user's message, rendered with the model's chat template; false tokenizes it as it
    is."""
    system: str | None = None
    """System message for chats that have none of their own; None: ``policy.system``."""
    chat_template_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    """Variables of the chat template for these chats, over those of the policy."""
    heldout: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of a round's own prompts that the round is measured on and no round learns from. Prompts that
    share runs of words (``gate.overlap``) stay together. None: the round is measured on
    ``suite.prompts``."""

    def with_chat(self, system: str | None, kwargs: Mapping[str, JsonValue]) -> Self:
        """Return the source with a round's or a suite's chat settings, where it states none itself."""
        changes: dict[str, Any] = {}
        if system is not None and self.system is None:
            changes["system"] = system
        if kwargs:
            changes["chat_template_kwargs"] = {**kwargs, **self.chat_template_kwargs}
        return self.model_copy(update=changes) if changes else self

    def __hash__(self) -> int:
        """Hash the values: rounds are grouped by their prompts, and pydantic hashes no mapping."""
        return hash(json.dumps(self.model_dump(mode="json"), sort_keys=True))

    @model_serializer(mode="wrap")
    def _without_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out settings that older stores do not have, unless they are set."""
        return without_unset(dump(self), ("chat_template_kwargs",))

    @model_validator(mode="after")
    def _demo_has_a_split(self) -> Self:
        if self.heldout is not None and self.source.startswith("demo://"):
            raise ValueError(
                f"{self.source} has an eval split of its own, on which the round is measured; remove "
                "heldout"
            )
        return self


Prompts = Annotated[PromptsConfig, BeforeValidator(sourced)]


INBOX = "inbox://"
"""Scheme of the campaign's own preference inbox, followed by the name of a stream."""


class ExamplesConfig(Settings):
    """Rows of a file or of the inbox that a round learns from."""

    source: InputPath
    """A .jsonl/.json/.parquet/.csv file, a ``datasets`` id (``id:config``), or ``inbox://STREAM`` for the
    rows that are in the campaign's preference inbox when the round begins."""
    use: Annotated[str, Field(pattern=r"^(once|all|last:[1-9][0-9]{0,8})$")] = "once"
    """Rows of a stream that a round reads. ``once``: those that no round has used yet; ``all``: all rows;
    ``last:N``: the newest N. Rows read by ``all`` and ``last:N`` stay unused for rounds with ``once``."""
    after_rejection: Literal["used", "returned"] = "used"
    """State of a stream's rows after the gate rejects the round. ``used``: no later round reads them,
    so one bad batch cannot stop a stream; ``returned``: the next round reads them again."""
    split: str = "train"
    """Split of a ``datasets`` id."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Number of rows to read, from the first; None reads all."""
    template: str | None = None
    """Text of the prompt with the row's columns in braces, as in ``"{instruction}\\n{input}"``; None: the
    prompt is the column ``prompt``."""
    chat: bool | None = None
    """Treat a text prompt as a user's message and a text answer as the assistant's, rendered with the chat
    template. None: only if ``template`` makes the prompt and the model has a chat template; false keeps
    plain text."""
    prompt: str = "prompt"
    """Column with the prompt. In pairs without this column the prompt is the common beginning of both
    sides."""
    chosen: str = "chosen"
    """Column with the preferred answer of a pair."""
    rejected: str = "rejected"
    """Column with the other answer of a pair."""
    margin: str = "margin"
    """Column with the difference in reward by which a pair's chosen answer is better; 0 without it. Only
    reward-model rounds read it."""
    completion: str = "completion"
    """Column with the answer of a rating or a demonstration."""
    label: str = "label"
    """Column that is true if the rated answer is desirable."""
    messages: str = "messages"
    """Column with whole conversations; demonstrations without a prompt are read from it."""
    turns: Literal["last", "all"] = "last"
    """Turns of a conversation in ``messages`` that are learnt. ``last``: the assistant's last answer, with
    the calls that it made on the way; ``all``: each of the assistant's turns. What users wrote and tools
    returned is never learnt."""
    text: str = "text"
    """Column with plain text, for rounds that learn from texts."""
    pack: bool = True
    """Join texts into windows of the context's length; false gives each document a row of its own."""
    cut: bool = False
    """Truncate answers that do not fit the context instead of leaving their rows out."""
    heldout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the rows that the round is measured on and never learns from. Rows that share runs of words
    (``gate.overlap``) stay together, and so do the answers to one prompt."""
    heldout_source: InputPath | None = None
    """File or id with the same columns to measure the round on instead of a share of ``source``, such as a
    published test split."""
    heldout_split: str = "test"
    """Split of ``heldout_source`` if that is a ``datasets`` id."""
    heldout_of: Literal["documents", "windows"] = "documents"
    """Unit of texts that is held out: whole documents, or windows of joined documents. The round then
    learns from a window's neighbours, so ``windows`` is for a single document. A store that began with
    windows keeps them."""
    max_dropped: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Largest share of rows that may be unusable before loading fails."""

    @model_serializer(mode="wrap")
    def _without_turns(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out unset ``turns``: stores that are older than the setting have no such key."""
        values: dict[str, Any] = dump(self)
        if self.turns == "last":
            values.pop("turns", None)
        return values

    @property
    def stream(self) -> str | None:
        """Stream of the inbox that is read; None for files."""
        return self.source.removeprefix(INBOX) if self.source.startswith(INBOX) else None

    @model_validator(mode="after")
    def _stream_settings(self) -> Self:
        stream = self.stream
        if stream is not None and not re.fullmatch(NAME_PATTERN, stream):
            raise ValueError(
                f"{self.source!r} names no stream; write inbox://NAME, a NAME of lower-case letters, "
                "digits, dots, dashes or underscores"
            )
        if stream is None and (self.use, self.after_rejection) != ("once", "used"):
            raise ValueError(
                f"use and after_rejection are for streams, and {self.source!r} is none; remove them, or "
                "read inbox://STREAM"
            )
        if self.heldout_source is not None and self.changed("heldout"):
            raise ValueError(
                f"heldout is {self.heldout:g} and heldout_source is {self.heldout_source!r}; remove "
                "one: the round is measured on a share of source, or on another file"
            )
        if self.heldout_source is not None and self.heldout_source.startswith(INBOX):
            raise ValueError(
                "heldout_source is a file or an id; a stream holds out a share of its rows"
            )
        if self.use == "all" and self.limit is not None:
            raise ValueError(
                f"use: all with limit: {self.limit} would read the oldest {self.limit} rows forever; set "
                f"use: last:{self.limit} for the newest, or remove limit"
            )
        return self

    @field_validator("template")
    @classmethod
    def _names_columns(cls, template: str | None) -> str | None:
        if template is None:
            return None
        try:
            fields = [part for part in Formatter().parse(template) if part[1] is not None]
        except ValueError:
            raise ValueError(
                f"a brace of the template {template!r} has no partner; write '{{instruction}}' for a "
                "column, and {{ for a brace"
            ) from None
        names = columns_of(template)
        plain = all(not spec and conversion is None for _, _, spec, conversion in fields)
        if not (names and plain) or any(
            not n or n.isdigit() or "." in n or "[" in n for n in names
        ):
            raise ValueError(
                f"template {template!r} must name columns as in '{{instruction}}', and nothing else; "
                "write {{ for a brace"
            )
        return template


def columns_of(template: str) -> list[str]:
    """List the columns that a template names, in order.

    Raises:
        ValueError: its braces do not match.
    """
    return [name for _, name, _, _ in Formatter().parse(template) if name is not None]

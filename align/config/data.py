"""Prompts and examples of a campaign file: where they come from, and how they are read."""

from __future__ import annotations

import re
from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from align.settings import NAME_PATTERN, InputPath, Settings


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
    """Take only the first so many rows."""
    chat: bool = False
    """A text is a user's message, rendered with the model's chat template; false tokenizes it as it is."""
    system: str | None = None
    """System message of these chats, where they have none of their own; None: ``policy.system``."""
    heldout: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of a round's own prompts that no round learns from: the round is measured on it. Prompts
    that share runs of words (``gate.overlap``) stay together. None: ``suite.prompts`` says what the round
    is measured on."""

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
    """A .jsonl/.json/.parquet/.csv file, a ``datasets`` id (``id:config``), or ``inbox://STREAM``: what has
    arrived in the campaign's preference inbox when the round begins."""
    use: Annotated[str, Field(pattern=r"^(once|all|last:[1-9][0-9]{0,8})$")] = "once"
    """Rows of a stream that a round reads. ``once``: what no round has used yet; ``all``: everything;
    ``last:N``: the newest N. What ``all`` and ``last:N`` read stays unused for rounds with ``once``."""
    after_rejection: Literal["used", "returned"] = "used"
    """State of a stream's rows after the gate rejects the round. ``used``: no later round reads them,
    so one bad batch cannot stop a stream; ``returned``: the next round reads them again."""
    split: str = "train"
    """Split of a ``datasets`` id."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Take only the first so many rows."""
    template: str | None = None
    """Makes the prompt from the row's columns, as in ``"{instruction}\\n{input}"``; None: a column does."""
    chat: bool | None = None
    """A text prompt is a user's message and a text answer the assistant's, rendered with the chat template.
    None: where ``template`` makes the prompt and the model has a chat template; false keeps plain text."""
    prompt: str = "prompt"
    """Column with the prompt. Pairs without one share it as the beginning of both sides."""
    chosen: str = "chosen"
    """Column with the preferred answer of a pair."""
    rejected: str = "rejected"
    """Column with the other answer of a pair."""
    margin: str = "margin"
    """Column that says by how much a pair's chosen answer is better, in rewards; without it 0. Reward-model
    rounds alone read it."""
    completion: str = "completion"
    """Column with the answer of a rating or a demonstration."""
    label: str = "label"
    """Column that is true where a rated answer is desirable."""
    messages: str = "messages"
    """Column with whole conversations; demonstrations without a prompt are read from it."""
    text: str = "text"
    """Column with plain text, for texts."""
    pack: bool = True
    """Texts: join documents into windows of the context; false gives each its own, as it was written."""
    cut: bool = False
    """Cut answers that do not fit the context instead of leaving their rows out."""
    heldout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share that is never learnt from: the round is measured on it. Rows that share runs of words
    (``gate.overlap``) stay together, and so do the answers to one prompt."""
    heldout_source: InputPath | None = None
    """File or id to measure the round on instead of a share of ``source``, such as a published test
    split; it has the same columns."""
    heldout_split: str = "test"
    """Split of ``heldout_source`` if that is a ``datasets`` id."""
    heldout_of: Literal["documents", "windows"] = "documents"
    """Unit of texts that is held out: whole documents, or windows of joined ones, whose neighbours are then
    learnt from. ``windows`` is for a single document. Stores that began with windows keep them."""
    max_dropped: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Largest share of rows that may be unusable before loading fails."""

    @property
    def stream(self) -> str | None:
        """The stream of the inbox that is read; None for files."""
        return self.source.removeprefix(INBOX) if self.source.startswith(INBOX) else None

    @model_validator(mode="after")
    def _stream_settings(self) -> Self:
        stream = self.stream
        if stream is not None and not re.fullmatch(NAME_PATTERN, stream):
            raise ValueError(
                f"{self.source!r} names no stream; write inbox://NAME with lower-case letters, digits, "
                "dot, dash or underscore"
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
        fields = [part for part in Formatter().parse(template) if part[1] is not None]
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
    """List the columns that a template names, in order; raise ValueError where its braces do not match."""
    return [name for _, name, _, _ in Formatter().parse(template) if name is not None]

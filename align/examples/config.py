"""Where examples come from and how they are read: the part of a campaign file."""

from __future__ import annotations

from string import Formatter
from typing import Annotated

from pydantic import Field, field_validator

from align.settings import Settings


class ExamplesConfig(Settings):
    """Rows of a file that a round learns from."""

    source: str
    """A .jsonl/.json/.parquet/.csv file, or a ``datasets`` id (``id:config``)."""
    split: str = "train"
    """Split of a ``datasets`` id."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Take only the first so many rows."""
    template: str | None = None
    """Makes the prompt from the row's columns, as in ``"{instruction}\\n{input}"``; None: a column does."""
    prompt: str = "prompt"
    """Column with the prompt. Pairs without one share it as the beginning of both sides."""
    chosen: str = "chosen"
    """Column with the preferred answer of a pair."""
    rejected: str = "rejected"
    """Column with the other answer of a pair."""
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
    """Share that is never learnt from: the round is measured on it."""
    max_dropped: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Largest share of rows that may be unusable before loading fails."""

    @field_validator("template")
    @classmethod
    def _names_columns(cls, template: str | None) -> str | None:
        if template is None:
            return None
        names = columns_of(template)
        if not names or any(not name or "." in name or "[" in name for name in names):
            raise ValueError(
                f"template {template!r} must name columns as in '{{instruction}}', and nothing else; "
                "write {{ for a brace"
            )
        return template


def columns_of(template: str) -> list[str]:
    """The columns that a template names, in order; raises ValueError where its braces do not match."""
    return [name for _, name, _, _ in Formatter().parse(template) if name is not None]

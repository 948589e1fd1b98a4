"""Where prompts come from, as a campaign file says it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from align.settings import Settings


def sourced(value: Any) -> Any:
    """``demo://rev`` is short for ``{source: demo://rev}``."""
    return {"source": value} if isinstance(value, str) else value


class PromptsConfig(Settings):
    """Where prompts come from."""

    source: str
    """``demo://NAME``, a .jsonl/.parquet/.csv file, or a ``datasets`` id."""
    column: str = "prompt"
    """Column with the text, or with chat messages."""
    split: str = "train"
    """Split of a ``datasets`` id."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Take only the first so many rows."""


Prompts = Annotated[PromptsConfig, BeforeValidator(sourced)]

"""Source of prompts, as a campaign file states it."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from align.settings import InputPath, Settings


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

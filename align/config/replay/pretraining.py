"""Settings of a pre-training mix: texts whose likelihood a round keeps up beside its own loss."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from align.config.data import INBOX, ExamplesConfig, sourced
from align.settings import InputPath, Settings


class PretrainingConfig(Settings):
    """Texts like those of pre-training, beside whatever the round learns."""

    source: InputPath
    """A .jsonl/.json/.parquet/.csv file with texts, or a ``datasets`` id."""
    text: str = "text"
    """Column with the text."""
    split: str = "train"
    """Split of a ``datasets`` id."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Number of rows to read, from the first; None reads all."""
    weight: Annotated[float, Field(gt=0)] = 0.05
    """Weight of the term in the loss, the mean negative log-likelihood of the texts' tokens."""
    rows: Annotated[float, Field(gt=0)] = 1.0
    """Windows of one step, on top of its completions; fractions carry over from step to step."""
    tokens: Annotated[int, Field(ge=2)] | None = None
    """Length of a window in tokens; None: the context that engines are started for."""
    pack: bool = True
    """Join texts into windows; false gives each document windows of its own."""
    heldout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the documents that is never learnt from; their likelihood is a metric of the round."""

    @field_validator("source")
    @classmethod
    def _has_texts(cls, source: str) -> str:
        if source.startswith((INBOX, "demo://")):
            raise ValueError(f"{source} holds no texts; name a file of texts, or a datasets id")
        return source

    @property
    def examples(self) -> ExamplesConfig:
        """Settings that the texts are read by."""
        return ExamplesConfig(
            source=self.source,
            text=self.text,
            split=self.split,
            limit=self.limit,
            pack=self.pack,
            heldout=self.heldout,
        )


Pretraining = Annotated[PretrainingConfig, BeforeValidator(sourced)]

"""Settings of self-synthesised rehearsal: prompts that the policy writes stand in for stored ones."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from align.settings import Settings


class SynthesisConfig(Settings):
    """Prompts that a round's parent writes, in place of those stored of earlier rounds."""

    count: Annotated[int, Field(ge=1)] = 64
    """Number of prompts that are replayed for each earlier round with stored prompts, and for all others
    together."""
    shots: Annotated[int, Field(ge=0)] = 3
    """Stored prompts of a round that the parent reads before it writes another; 0, or nothing stored
    (``buffer: 0`` of that round), lets it write freely."""
    separator: Annotated[str, Field(min_length=1)] = "\n\n"
    """Text between the prompts that the parent reads; it also ends what it writes."""
    end: Annotated[str, Field(min_length=1)] | None = None
    """Text that ends every prompt, such as ``Answer:``; what is written after it is cut off, and prompts
    without it are dropped. None: the separator, or the model's own end, ends a prompt."""
    oversample: Annotated[float, Field(ge=1)] = 2.0
    """Prompts that are written, as a multiple of those replayed; the most diverse are chosen."""
    max_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest prompt, in tokens."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature of the prompts."""

    @property
    def num_written(self) -> int:
        """Number of prompts that are written where ``count`` are replayed."""
        return round(self.count * self.oversample)

"""Suites of given token sequences: windows of a text, and held-out examples of a round's own file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from align.config import SuiteConfig
from align.examples.holdout import measured_units
from rollouts.errors import UserError
from rollouts.types import Prompt

if TYPE_CHECKING:
    from align.examples import Unit
    from rollouts.prompts import PromptEncoder

TokenPair = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a prompt and of what follows it."""

MIN_ITEMS = 8
"""Fewest items of such a suite: below, the spread between them cannot be estimated."""


class Sequences(TypedDict):
    """The fields of a suite that hold sequences."""

    sequences: tuple[TokenPair, ...]
    sequence_ids: tuple[str, ...]
    sequence_places: tuple[str, ...]


def windows_of(
    token_ids: Sequence[int], window: int, bos: int | None = None
) -> tuple[tuple[int, ...], ...]:
    """Non-overlapping windows of ``window`` tokens, each opened by ``bos`` where there is one.

    The remainder is left out: shorter windows would be noisier items.

    >>> windows_of([1, 2, 3, 4, 5], 2)
    ((1, 2), (3, 4))
    >>> windows_of([0, 1, 2, 3, 4, 5], 3, bos=0)
    ((0, 1, 2), (0, 3, 4))
    """
    body = token_ids[1:] if bos is not None and token_ids[:1] == [bos] else token_ids
    opening = () if bos is None else (bos,)
    size = window - len(opening)
    starts = range(0, len(body) - size + 1, size)
    return tuple((*opening, *body[start : start + size]) for start in starts)


def text_sequences(spec: SuiteConfig, where: str, encoder: PromptEncoder) -> Sequences:
    """At most ``items`` windows of a text file, each predicted from its first token."""
    path = Path(spec.text or "")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the text {spec.text!r} of suite {spec.name!r} cannot be read: {error}",
            where=f"{where}.text",
        ) from error
    token_ids = list(encoder.encode(Prompt(id=spec.name, text=text)))
    windows = windows_of(token_ids, spec.window, encoder.tokenizer.bos_token_id)[: spec.items]
    if len(windows) < MIN_ITEMS:
        raise UserError(
            f"the text of suite {spec.name!r} fills {len(windows)} windows of {spec.window} "
            f"tokens, at least {MIN_ITEMS} are needed",
            where=f"{where}.text",
            remedy="give it a longer text, or a smaller window",
        )
    return Sequences(
        sequences=tuple((window[:1], window[1:]) for window in windows),
        sequence_ids=tuple(f"window/{index}" for index in range(len(windows))),
        sequence_places=(),
    )


def example_sequences(examples: Sequence[Unit], items: int, where: str) -> Sequences:
    """Answers of at most ``items`` held-out examples; of a pair the better one first.

    Raises:
        UserError: too few examples are held out to measure anything.
    """
    units = measured_units(examples, items)
    if len(units) < MIN_ITEMS:
        raise UserError(
            f"{len(units)} examples are held out, at least {MIN_ITEMS} are needed",
            where=where,
            remedy="raise heldout, give the file more rows, or name prompts in suite.prompts",
        )
    rows = [
        row
        for unit in units
        for row in sorted(unit.rows, key=lambda row: -(row.advantage or 0.0))
        if len(unit.rows) == 2 or row.advantage == 1.0
    ]
    return Sequences(
        sequences=tuple((row.prompt_ids, row.completion_ids) for row in rows),
        sequence_ids=tuple(unit.id for unit in units),
        sequence_places=tuple(unit.place for unit in units),
    )

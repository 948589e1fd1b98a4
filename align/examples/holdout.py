"""What a round does not learn from, and what it asks: two views of its examples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from align.examples.stream import Unit
from rollouts.prompts import PromptEncoder, content_id, distinct
from rollouts.types import Prompt

OPENING = 8
"""Tokens of a text that serve as a prompt."""


def hold_out(units: Sequence[Unit], share: float) -> tuple[tuple[Unit, ...], tuple[Unit, ...]]:
    """Units to learn from, and about ``share`` of them to be measured on.

    Decided by a hash of the prompt (of the text, where there is none): all answers to one prompt fall on
    one side, and rows added later move nothing.
    """
    held = [unit for unit in units if _place(unit) < share]
    kept = [unit for unit in units if _place(unit) >= share]
    return tuple(kept), tuple(held)


def prompts_of(units: Sequence[Unit], encoder: PromptEncoder) -> list[Prompt]:
    """The distinct prompts of examples; of texts their first few words.

    Later rounds replay them, and drift is measured on them.
    """
    return distinct([unit.prompt or _opening(unit, encoder) for unit in units])


def _opening(unit: Unit, encoder: PromptEncoder) -> Prompt:
    (row,) = unit.rows
    text = encoder.decode((*row.prompt_ids, *row.completion_ids)[:OPENING]).strip() or "The"
    return Prompt(id=content_id(text), text=text, round=row.round)


def _place(unit: Unit) -> float:
    return place(unit.prompt.id if unit.prompt is not None else unit.id)


def place(name: str) -> float:
    """Where a prompt's id falls between 0 and 1; what falls below the share is held out."""
    digest = hashlib.sha256(f"held out/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64

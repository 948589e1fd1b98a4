"""Rewards with a right answer: 1.0 or 0.0, and None where the dataset has no answer.

Texts are compared with their white space normalised: ``" 5  1\\n4"`` equals ``"5 1 4"``. Nothing
here understands mathematics or runs code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rewards.base import ShownCompletion, completion_text
from rollouts.errors import UserError


def exact_match(
    completions: Sequence[ShownCompletion], answer: Sequence[Any]
) -> list[float | None]:
    """1.0 where the completion is the column ``answer`` (numbers are compared as written)."""
    return [
        None if right is None else float(_words(completion_text(completion)) == _words(str(right)))
        for completion, right in zip(completions, answer, strict=True)
    ]


def contains(completions: Sequence[ShownCompletion], answer: Sequence[Any]) -> list[float | None]:
    """1.0 where the column ``answer`` occurs anywhere in the completion, inside a word too."""
    return [
        None if right is None else float(_words(str(right)) in _words(completion_text(completion)))
        for completion, right in zip(completions, answer, strict=True)
    ]


def regex_match(
    completions: Sequence[ShownCompletion], pattern: str | None = None, full: bool = False
) -> list[float]:
    """1.0 where the regular expression ``pattern`` matches; ``full``: matches the whole text.

    The text is taken as it is, white space included.
    """
    if pattern is None:
        raise UserError("regex_match needs a pattern", remedy='add options: {pattern: "..."}')
    expression = re.compile(pattern)
    match = expression.fullmatch if full else expression.search
    return [float(match(completion_text(completion)) is not None) for completion in completions]


def _words(text: str) -> str:
    return " ".join(text.split())

"""Rewards with a right answer: 1.0 or 0.0, and None where the dataset has no answer.

Texts are compared with their white space normalised: ``" 5  1\\n4"`` equals ``"5 1 4"``. A list in the
column ``answer`` accepts any of its members. Nothing here understands mathematics or runs code: that
is `rewards.library.maths` and `rewards.library.code`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from typing import Any

from rewards.base import ShownCompletion, completion_text
from rewards.signatures.options import given, whole_number
from rollouts.errors import UserError


def exact_match(
    completions: Sequence[ShownCompletion], answer: Sequence[Any]
) -> list[float | None]:
    """Score 1.0 where the completion is the column ``answer`` (numbers are compared as written)."""
    return _compare(completions, answer, lambda text, right: _words(text) == _words(right))


def normalised_match(
    completions: Sequence[ShownCompletion], answer: Sequence[Any]
) -> list[float | None]:
    """Score 1.0 where the completion is the column ``answer`` up to case, punctuation and a, an, the.

    The normalisation of SQuAD's exact match: Rajpurkar et al. 2016, arXiv 1606.05250.
    """
    return _compare(
        completions, answer, lambda text, right: _normalised(text) == _normalised(right)
    )


def contains(completions: Sequence[ShownCompletion], answer: Sequence[Any]) -> list[float | None]:
    """Score 1.0 where the column ``answer`` occurs anywhere in the completion, inside a word too."""
    return _compare(completions, answer, lambda text, right: _words(right) in _words(text))


def regex_match(
    completions: Sequence[ShownCompletion], pattern: str | None = None, full: bool = False
) -> list[float]:
    """Score 1.0 where the regular expression ``pattern`` matches; ``full``: matches the whole text.

    The text is taken as it is, white space included.
    """
    if pattern is None:
        raise UserError("regex_match needs a pattern", remedy='add options: {pattern: "..."}')
    expression = re.compile(pattern)
    match = expression.fullmatch if full else expression.search
    return [float(match(completion_text(completion)) is not None) for completion in completions]


def multiple_choice(
    completions: Sequence[ShownCompletion],
    answer: Sequence[Any],
    choices: str = "ABCD",
) -> list[float | None]:
    """Score 1.0 where the letter that the completion settles on is the one in the column ``answer``.

    The column holds a letter of ``choices``, or its position counted from 0. What settles it, in this
    order: the last ``\\boxed{B}``, the last "answer is B" (or "answer: (B)"), a text that is
    nothing but the letter. A completion that settles on none, or on "A or B", earns 0.0.
    """
    given("multiple_choice", "choices", choices, "ABCD")
    if not re.fullmatch("[A-Z]+", str(choices)) or len(set(choices)) < len(choices):
        raise UserError(f"choices must be different capital letters, got {choices!r}")
    return [
        None
        if right is None
        else float(_choice(completion_text(c), choices) == _key(right, choices))
        for c, right in zip(completions, answer, strict=True)
    ]


def _compare(
    completions: Sequence[ShownCompletion],
    answers: Sequence[Any],
    equal: Callable[[str, str], bool],
) -> list[float | None]:
    scores: list[float | None] = []
    for completion, right in zip(completions, answers, strict=True):
        accepted = right if isinstance(right, list | tuple) else [right]
        text = completion_text(completion)
        accepted = [str(answer) for answer in accepted if answer is not None]
        scores.append(float(any(equal(text, answer) for answer in accepted)) if accepted else None)
    return scores


def _words(text: str) -> str:
    return " ".join(text.split())


def _normalised(text: str) -> str:
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return _words(re.sub(r"\b(a|an|the)\b", " ", bare))


def _key(right: Any, choices: str) -> str:
    """Return the letter that a cell of the column means."""
    if type(right) is int:
        whole_number("answer", right, 0)
        right = choices[right] if right < len(choices) else right
    letter = str(right).strip().strip("().").upper()
    if letter not in choices or len(letter) != 1:
        raise UserError(f"the answer {right!r} is none of the choices {choices!r}")
    return letter


def _choice(text: str, choices: str) -> str | None:
    """Return the letter that a text settles on."""
    hedged = rf"(?!\W*(?:or|and|,|/|&)\W*[{choices}]\b)"
    letter = rf"\(?\s*([{choices}])\b\s*\)?{hedged}"
    for pattern in (
        rf"\\boxed\{{\s*(?:\\text\{{)?{letter}",
        rf"(?i:answer)(?:\s+(?i:is))?\s*[:=]?\s*\**\s*{letter}",
    ):
        letters = re.findall(pattern, text)
        if letters:
            return str(letters[-1])
    alone = re.fullmatch(rf"[\s*().:]*([{choices}])[\s*().:]*", text)
    return alone[1] if alone else None

"""Rewards for the style of a text: how it sounds, what it is made of, how long it is.

All of them are cheap and can be computed without a model; all of them can be gamed. Weigh them
against one another, and watch `distinct_ngrams` even where it is not rewarded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

from rewards.base import ShownCompletion, completion_text
from rewards.signatures.options import fraction, missing_package, whole_number
from rollouts.errors import UserError

Unit = Literal["token", "character", "word"]
UNITS = ("token", "character", "word")

QUOTES = '"\u201c\u201d'
"""The straight double quotation mark and the two curly ones."""


def sentiment(completions: Sequence[ShownCompletion]) -> list[float]:
    """Score VADER's compound value, -1 (negative) to 1 (positive); 0 for a text without known words.

    Hutto & Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis", ICWSM 2014.
    Needs the extra ``stories``.
    """
    analyzer = _vader()
    return [float(analyzer.polarity_scores(completion_text(c))["compound"]) for c in completions]


def dialogue(completions: Sequence[ShownCompletion], cap: int = 2) -> list[float]:
    """Score quotation marks over ``cap``, at most 1.0. The cap keeps a page of quotes from paying."""
    whole_number("cap", cap)
    texts = [completion_text(completion) for completion in completions]
    return [min(sum(text.count(quote) for quote in QUOTES), cap) / cap for text in texts]


def ends_within(
    completions: Sequence[ShownCompletion],
    completion_ids: Sequence[Sequence[int]],
    tokens: int | None = None,
    characters: int | None = None,
) -> list[float]:
    """Score 1.0 where the completion is at most so long; give ``tokens`` or ``characters``.

    Tokens count the end-of-sequence token. A completion that is cut at the sampler's ``max_tokens``
    has exactly that many, so with ``tokens`` below ``max_tokens`` a 1.0 also means that the model
    itself ended; at or above it every completion would get 1.0.
    """
    if (tokens is None) == (characters is None):
        raise UserError(
            "ends_within takes either 'tokens' or 'characters'", remedy="set exactly one"
        )
    unit: Unit = "character" if tokens is None else "token"
    limit = tokens if tokens is not None else characters
    assert limit is not None
    whole_number(f"{unit}s", limit)
    return [float(len(units) <= limit) for units in _units(completions, completion_ids, unit)]


def short_sentences(
    completions: Sequence[ShownCompletion], target: int = 20, limit: int = 48
) -> list[float]:
    """Score 1.0 where no sentence is longer than ``target`` characters, falling to 0.0 at ``limit``.

    The longest sentence counts, the unfinished one at the end included: a text that never ends its
    sentence earns nothing.
    """
    whole_number("target", target)
    if limit <= target:
        raise UserError(f"limit must be above target, got {limit} and {target}")
    texts = [completion_text(completion) for completion in completions]
    longest = [max(len(part.strip(' "\n')) for part in re.split(r"[.!?]", text)) for text in texts]
    return [min(1.0, max(0.0, (limit - n) / (limit - target))) for n in longest]


def distinct_ngrams(
    completions: Sequence[ShownCompletion],
    completion_ids: Sequence[Sequence[int]],
    n: int = 4,
    unit: Unit = "token",
    cap: float = 1.0,
) -> list[float | None]:
    """Score different n-grams over all n-grams: 1.0 says nothing is repeated, near 0 it is one loop.

    distinct-n of Li et al. 2016, arXiv 1510.03055. None where the completion has no n-gram. Beyond ``cap``
    more variety scores no more, so that a guard beside another reward does not become a goal.
    """
    whole_number("n", n)
    fraction("cap", cap)
    shares: list[float | None] = []
    for units in _units(completions, completion_ids, unit):
        ngrams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
        shares.append(min(len(set(ngrams)) / len(ngrams), cap) if ngrams else None)
    return shares


def length(
    completions: Sequence[ShownCompletion],
    completion_ids: Sequence[Sequence[int]],
    target: int | None = None,
    unit: Unit = "token",
) -> list[float]:
    """Score the length L; with a ``target`` how near it is: max(0, 1 - |L - target| / target)."""
    lengths = [len(units) for units in _units(completions, completion_ids, unit)]
    if target is None:
        return [float(count) for count in lengths]
    whole_number("target", target)
    return [max(0.0, 1.0 - abs(count - target) / target) for count in lengths]


def soft_overlong(
    completion_ids: Sequence[Sequence[int]], max_tokens: int | None = None, cache: int = 0
) -> list[float]:
    """Score 0 up to ``max_tokens - cache`` tokens L, then falling to -1 at ``max_tokens``, and -1
    beyond.

    The soft overlong punishment of DAPO, arXiv 2503.14476 eq. 13: (max_tokens - cache - L) / cache.
    With the sampler's own ``max_tokens`` an answer that was cut has -1; ``cache`` 0 is a hard limit.
    """
    if max_tokens is None:
        raise UserError("soft_overlong needs max_tokens", remedy="add options: {max_tokens: 512}")
    whole_number("max_tokens", max_tokens)
    whole_number("cache", cache, 0)
    if cache >= max_tokens:
        raise UserError(f"cache must be below max_tokens, got {cache} and {max_tokens}")
    free = max_tokens - cache
    return [
        0.0 if len(ids) <= free else max(-1.0, (free - len(ids)) / cache) if cache else -1.0
        for ids in completion_ids
    ]


def _units(
    completions: Sequence[ShownCompletion], completion_ids: Sequence[Sequence[int]], unit: Unit
) -> list[Sequence[Any]]:
    """Split each completion into tokens, characters or words."""
    if unit not in UNITS:
        raise UserError(f"unit {unit!r} is not known", remedy=f"Known: {', '.join(UNITS)}")
    if unit == "token":
        return list(completion_ids)
    texts = [completion_text(completion) for completion in completions]
    return list(texts) if unit == "character" else [text.split() for text in texts]


@cache
def _vader() -> Any:
    """Load the analyzer, whose lexicon is read once."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise missing_package("sentiment", "vaderSentiment", error, "stories") from error
    return SentimentIntensityAnalyzer()

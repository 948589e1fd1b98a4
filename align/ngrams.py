"""How much completions repeat: themselves, and one another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from rollouts.types import RolloutGroup

LENGTH = 4
"""Tokens of an n-gram."""


def ngram_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """``completions/repeated_ngrams`` and ``completions/distinct_ngrams`` of a step.

    Completions of one prompt are not compared with each other: where there is one right answer they
    should be the same. A metric is left out where no completion is long enough for it.
    """
    slices = [
        [group.completions_G[i].token_ids for group in groups if i < len(group.completions_G)]
        for i in range(max((len(group.completions_G) for group in groups), default=0))
    ]
    repeated = [r for texts in slices for text in texts if (r := repeated_share(text)) is not None]
    distinct = [d for texts in slices if (d := distinct_share(texts)) is not None]
    found = {"repeated_ngrams": repeated, "distinct_ngrams": distinct}
    return {f"completions/{name}": fmean(values) for name, values in found.items() if values}


def repeated_share(token_ids: Sequence[int], n: int = LENGTH) -> float | None:
    """Share of a completion's n-grams that stood in it before: one less distinct-n (arXiv:1510.03055)."""
    ngrams = ngrams_of(token_ids, n)
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else None


def distinct_share(texts: Sequence[Sequence[int]], n: int = LENGTH) -> float | None:
    """Share of the n-grams of several completions that only one of them has; None for fewer than two."""
    held = [kinds for text in texts if (kinds := set(ngrams_of(text, n)))]
    if len(held) < 2:
        return None
    counts = Counter(ngram for kinds in held for ngram in kinds)
    return sum(count == 1 for count in counts.values()) / len(counts)


def ngrams_of(token_ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """Every run of ``n`` tokens, in order."""
    return [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]

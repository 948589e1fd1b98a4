"""Likeness of an answer to another one that the dataset holds, such as an earlier snapshot's.

It rewards staying, as an anchor does, but for what was written instead of how likely it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

from rewards.base import ShownCompletion, completion_text
from rewards.signatures.options import one_of, whole_number

MEASURES = ("ngrams", "edits")


def similarity(
    completions: Sequence[ShownCompletion],
    reference: Sequence[Any],
    measure: str = "ngrams",
    n: int = 2,
) -> list[float | None]:
    """Score the likeness of the completion to the column ``reference``, 0 (nothing shared) to 1 (the
    same words).

    ``ngrams``: F1 of the word ``n``-grams they share, each counted as often as in both (ROUGE-N, Lin
    2004). ``edits``: Ratcliff and Obershelp's ratio over words, 2 * matching / all, which keeps their
    order. None where there is no reference, or one of the two is shorter than ``n`` words.
    """
    one_of("measure", measure, MEASURES)
    whole_number("n", n)
    scores: list[float | None] = []
    for completion, other in zip(completions, reference, strict=True):
        words = completion_text(completion).split()
        # A chat answer in the column is one message in a list, as a completion is.
        reference_words = None if other is None else completion_text(other).split()
        if reference_words is None or min(len(words), len(reference_words)) < (
            n if measure == "ngrams" else 1
        ):
            scores.append(None)
        else:
            scores.append(
                shared_ngrams(words, reference_words, n)
                if measure == "ngrams"
                else matching(words, reference_words)
            )
    return scores


def shared_ngrams(words: Sequence[str], reference_words: Sequence[str], n: int) -> float:
    """Return the F1 of n-grams: 2 * shared / (those of one + those of the other)."""
    ngrams, reference_ngrams = (
        Counter(tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1))
        for sequence in (words, reference_words)
    )
    return 2 * (ngrams & reference_ngrams).total() / (ngrams.total() + reference_ngrams.total())


def matching(words: Sequence[str], reference_words: Sequence[str]) -> float:
    """Return the share of matching words in order among all words of both."""
    return SequenceMatcher(None, words, reference_words, autojunk=False).ratio()

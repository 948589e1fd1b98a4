"""How near an answer is to another one that the dataset holds, such as an earlier snapshot's.

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
    """Likeness of the completion to the column ``reference``, 0 (nothing shared) to 1 (the same words).

    ``ngrams``: F1 of the word ``n``-grams they share, each counted as often as in both (ROUGE-N, Lin
    2004). ``edits``: Ratcliff and Obershelp's ratio over words, 2 * matching / all, which keeps their
    order. None where there is no reference, or one of the two is shorter than ``n`` words.
    """
    one_of("measure", measure, MEASURES)
    whole_number("n", n)
    scores: list[float | None] = []
    for completion, other in zip(completions, reference, strict=True):
        said = completion_text(completion).split()
        # A chat answer in the column is one message in a list, as a completion is.
        kept = None if other is None else completion_text(other).split()
        if kept is None or min(len(said), len(kept)) < (n if measure == "ngrams" else 1):
            scores.append(None)
        else:
            scores.append(
                shared_ngrams(said, kept, n) if measure == "ngrams" else matching(said, kept)
            )
    return scores


def shared_ngrams(said: Sequence[str], kept: Sequence[str], n: int) -> float:
    """F1 of n-grams: 2 * shared / (those of one + those of the other)."""
    ours, theirs = (
        Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        for words in (said, kept)
    )
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def matching(said: Sequence[str], kept: Sequence[str]) -> float:
    """Matching words in order, as a share of all words of both."""
    return SequenceMatcher(None, said, kept, autojunk=False).ratio()

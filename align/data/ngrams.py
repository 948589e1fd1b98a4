"""Repetition in completions: within one, and between several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean

from rollouts.types import RolloutGroup

LENGTH = 4
"""Tokens of an n-gram."""
ALIKE = 0.7
"""Share of common n-grams from which on two answers are nearly the same."""
SKETCH = 8
"""Smallest hashes of an answer's n-grams by which others like it are looked for."""
LEADERS = 16
"""Answers that others are compared with in one step."""


def ngram_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Compute ``completions/repeated_ngrams`` and ``completions/distinct_ngrams`` of a step.

    Completions of one prompt are not compared with each other: where there is one right answer they
    should be the same. A metric is left out where no completion is long enough for it.
    """
    slices = [
        [group.completions_G[i].token_ids for group in groups if i < len(group.completions_G)]
        for i in range(max((len(group.completions_G) for group in groups), default=0))
    ]
    repeated = [r for texts in slices for text in texts if (r := repeated_share(text)) is not None]
    distinct = [d for texts in slices if (d := distinct_share(texts)) is not None]
    shares = {"repeated_ngrams": repeated, "distinct_ngrams": distinct}
    return {f"completions/{name}": fmean(values) for name, values in shares.items() if values}


def shares_of_one_answer(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Compute ``completions/identical_share`` and ``completions/similar_share`` of a step.

    The largest share of the samples that are one and the same answer, given to at least two prompts: word
    for word, or with at least `ALIKE` of all n-grams in common. Answers of fewer than `LENGTH` tokens are
    no evidence: there are not many of them. Left out where no completion is longer.
    """
    answers = [
        (prompt, tuple(completion.token_ids))
        for prompt, group in enumerate(groups)
        for completion in group.completions_G
        if completion.token_ids
    ]
    askers: dict[tuple[int, ...], list[int]] = {}
    for prompt, tokens in answers:
        if len(tokens) >= LENGTH:
            askers.setdefault(tokens, []).append(prompt)
    if not askers:
        return {}
    similar = max((_size(family, askers) for family in _families(askers)), default=0)
    identical = max(_size([tokens], askers) for tokens in askers)
    return {
        "completions/identical_share": identical / len(answers),
        "completions/similar_share": max(similar, identical) / len(answers),
    }


def _size(family: Iterable[tuple[int, ...]], askers: Mapping[tuple[int, ...], list[int]]) -> int:
    """Count the samples of a family of answers; 0 if a single prompt got all of them."""
    prompts = [prompt for tokens in family for prompt in askers[tokens]]
    return len(prompts) if len(set(prompts)) > 1 else 0


def _families(
    askers: Mapping[tuple[int, ...], list[int]],
) -> Iterator[list[tuple[int, ...]]]:
    """Yield answers that are nearly the same, around the likeliest leaders.

    Answers are compared where they share one of the smallest hashes of their n-grams, as nearly all that
    are alike do (bottom-k sketches, Broder 1997): the cost is no square of their number.
    """
    kinds = {tokens: frozenset(ngrams_of(tokens, LENGTH)) for tokens in askers}
    sketches = {tokens: sorted(map(hash, kind))[:SKETCH] for tokens, kind in kinds.items()}
    buckets: dict[int, list[tuple[int, ...]]] = {}
    for tokens, sketch in sketches.items():
        for value in sketch:
            buckets.setdefault(value, []).append(tokens)
    fullest = sorted(buckets.values(), key=lambda kind: -sum(len(askers[t]) for t in kind))
    for bucket in fullest[:LEADERS]:
        leader = max(bucket, key=lambda tokens: (len(askers[tokens]), -len(tokens)))
        near = {other for value in sketches[leader] for other in buckets[value]}
        yield [other for other in near if _likeness(kinds[leader], kinds[other]) >= ALIKE]


def _likeness(first: frozenset[object], other: frozenset[object]) -> float:
    """Compute Jaccard's likeness: n-grams that both have over those that either has."""
    return len(first & other) / len(first | other)


def repeated_share(token_ids: Sequence[int], n: int = LENGTH) -> float | None:
    """Compute the share of a completion's n-grams that stood in it before: one less distinct-n
    (arXiv:1510.03055)."""
    ngrams = ngrams_of(token_ids, n)
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else None


def distinct_share(texts: Sequence[Sequence[int]], n: int = LENGTH) -> float | None:
    """Compute the share of several completions' n-grams that only one of them has; None for fewer than
    two."""
    kinds_of_texts = [kinds for text in texts if (kinds := set(ngrams_of(text, n)))]
    if len(kinds_of_texts) < 2:
        return None
    counts = Counter(ngram for kinds in kinds_of_texts for ngram in kinds)
    return sum(count == 1 for count in counts.values()) / len(counts)


def ngrams_of(token_ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """List every run of ``n`` tokens, in order."""
    return [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]

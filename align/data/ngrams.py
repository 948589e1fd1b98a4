"""Measures of repetition within a completion and between several completions.

In an episode only the policy's own tokens count. An n-gram does not repeat one of an earlier turn, since
every call has the same form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean

from rollouts.types import Completion, RolloutGroup, sampled_spans

LENGTH = 4
"""Tokens of an n-gram."""
ALIKE = 0.7
"""Share of common n-grams at which two answers count as nearly the same."""
SKETCH = 8
"""Number of an answer's smallest n-gram hashes that similar answers are looked up by."""
LEADERS = 16
"""Number of answers in a step that the others are compared with."""


def ngram_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Compute ``completions/repeated_ngrams`` and ``completions/distinct_ngrams`` of a step.

    Completions of one prompt are not compared with each other, since they should agree if there is one
    right answer. A metric is left out if no completion is long enough for it.
    """
    slices = [
        [group.completions_G[i] for group in groups if i < len(group.completions_G)]
        for i in range(max((len(group.completions_G) for group in groups), default=0))
    ]
    repeated = [
        share
        for completions in slices
        for completion in completions
        if (share := repeated_share(*turns_of(completion))) is not None
    ]
    distinct = [
        share
        for completions in slices
        if (share := distinct_share([c.sampled_ids for c in completions])) is not None
    ]
    shares = {"repeated_ngrams": repeated, "distinct_ngrams": distinct}
    return {f"completions/{name}": fmean(values) for name, values in shares.items() if values}


def shares_of_one_answer(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Compute ``completions/identical_share`` and ``completions/similar_share`` of a step.

    Each is the largest share of the samples that give the same answer to at least two prompts: word for
    word, or with at least `ALIKE` of all n-grams in common. Answers of fewer than `LENGTH` tokens are left
    out, since few such answers exist. Without a longer completion there are no metrics.
    """
    answers = [
        (prompt, completion.sampled_ids)
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
    """Yield groups of answers that are nearly the same, around the most frequent ones.

    Only answers that share one of the smallest hashes of their n-grams are compared, as nearly all similar
    answers do (bottom-k sketches, Broder 1997). So the cost is not quadratic in their number.
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
        # Jaccard similarity: n-grams that both have over those that either has.
        yield [
            other
            for other in near
            if len(kinds[leader] & kinds[other]) / len(kinds[leader] | kinds[other]) >= ALIKE
        ]


def turns_of(completion: Completion) -> list[tuple[int, ...]]:
    """Return the tokens of every turn that the policy sampled."""
    spans = sampled_spans(len(completion.token_ids), completion.observed)
    return [completion.token_ids[start:end] for start, end in spans]


def repeated_share(*turns: Sequence[int], n: int = LENGTH) -> float | None:
    """Compute the share of n-grams that repeat an earlier one of their turn: 1 minus distinct-n.

    None where no turn has ``n`` tokens. Source: arXiv 1510.03055.
    """
    ngrams = [ngrams_of(turn, n) for turn in turns]
    total = sum(map(len, ngrams))
    return 1 - sum(len(set(of_turn)) for of_turn in ngrams) / total if total else None


def distinct_share(texts: Sequence[Sequence[int]], n: int = LENGTH) -> float | None:
    """Compute the share of several completions' n-grams that only one of them has.

    None unless at least two completions have ``n`` tokens.
    """
    kinds_of_texts = [kinds for text in texts if (kinds := set(ngrams_of(text, n)))]
    if len(kinds_of_texts) < 2:
        return None
    counts = Counter(ngram for kinds in kinds_of_texts for ngram in kinds)
    return sum(count == 1 for count in counts.values()) / len(counts)


def ngrams_of(token_ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """List every run of ``n`` tokens, in order."""
    return [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]

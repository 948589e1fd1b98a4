"""Preference pairs of scored groups: pairs of a better and a worse completion of one prompt.

Works on plain numbers and indices and imports no torch. A completion that failed, has no tokens or got no
score is never paired. Two completions are tied if their scores are equal or differ by less than the
margin, or if they have the same tokens: such a pair would teach nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from rollouts.types import ScoredGroup

Choose = Literal["best_worst", "all"]
"""Choice of the completions of a group that are compared."""
Pair = tuple[int, int]
"""Indices of two completions within a group: the chosen one, then the rejected one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairing:
    """Pairs of one group, and its number of ties."""

    pairs: tuple[Pair, ...]
    ties: int
    """Comparisons between tied completions."""


def pair_up(scored: ScoredGroup, *, choose: Choose, margin: float, max_pairs: int) -> Pairing:
    """Find the preference pairs of one group, those with the widest score difference first.

    Args:
        margin: smallest score difference that decides a comparison, in reward units.
        max_pairs: largest number of pairs; `spread` chooses among more.
    """
    values = {
        index: score.value
        for index, (completion, score) in enumerate(
            zip(scored.group.completions_G, scored.scores_G, strict=True)
        )
        if score.status == "scored" and score.value is not None and completion.token_ids
    }
    compared = COMPARISONS[choose](values)
    gaps = {pair: values[pair[0]] - values[pair[1]] for pair in compared}
    answers_G = scored.group.completions_G
    decided = {
        (better, worse): gap
        for (better, worse), gap in gaps.items()
        if gap > 0 and gap >= margin and answers_G[better].token_ids != answers_G[worse].token_ids
    }
    return Pairing(pairs=spread(decided, max_pairs), ties=len(compared) - len(decided))


def best_against_worst(values: Mapping[int, float]) -> Sequence[Pair]:
    """Compare the best completion of a group with its worst; among equal scores the first counts."""
    if len(values) < 2:
        return ()
    return ((max(values, key=values.__getitem__), min(values, key=values.__getitem__)),)


def all_comparisons(values: Mapping[int, float]) -> Sequence[Pair]:
    """Compare every two completions, the better one first."""
    return [(i, j) if values[i] >= values[j] else (j, i) for i, j in combinations(values, 2)]


COMPARISONS: dict[Choose, Callable[[Mapping[int, float]], Sequence[Pair]]] = {
    "best_worst": best_against_worst,
    "all": all_comparisons,
}


def spread(gaps: Mapping[Pair, float], most: int) -> tuple[Pair, ...]:
    """Choose at most ``most`` pairs by the widest gap; among equal gaps by the least used completions.

    If answers are only right or wrong, all gaps are equal, and the pairs should not all share one answer.

    >>> spread({(0, 2): 1.0, (0, 3): 1.0, (1, 2): 1.0, (1, 3): 1.0}, 2)
    ((0, 2), (1, 3))
    """
    left, used = dict(gaps), Counter[int]()
    chosen: list[Pair] = []
    while left and len(chosen) < most:
        best = min(left, key=lambda pair: (-left[pair], used[pair[0]] + used[pair[1]], pair))
        del left[best]
        used.update(best)
        chosen.append(best)
    return tuple(chosen)

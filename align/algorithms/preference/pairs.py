"""Preference pairs out of scored groups: which completion of a prompt is preferred to which.

Plain numbers and indices; imports no torch. A completion that failed, has no tokens or got no score is
never paired. Two completions are tied where their scores differ by less than the margin, or not at all,
or where they are the same tokens: such a pair would teach nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from rollouts.types import ScoredGroup

Choose = Literal["best_worst", "all"]
"""Which completions of a group are compared."""
Pair = tuple[int, int]
"""Indices within a group: the chosen completion, then the rejected one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairing:
    """What one group gives."""

    pairs: tuple[Pair, ...]
    ties: int
    """Comparisons that decided nothing."""


def pair_up(scored: ScoredGroup, *, choose: Choose, margin: float, max_pairs: int) -> Pairing:
    """The preference pairs of one group, the clearest first.

    Args:
        margin: smallest score difference that decides a comparison, in reward units.
        max_pairs: how many pairs are kept; see `spread`.
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
    """One comparison a group; of equal scores the first completion's counts."""
    if len(values) < 2:
        return ()
    return ((max(values, key=values.__getitem__), min(values, key=values.__getitem__)),)


def all_comparisons(values: Mapping[int, float]) -> Sequence[Pair]:
    """Every two completions, the better one first."""
    return [(i, j) if values[i] >= values[j] else (j, i) for i, j in combinations(values, 2)]


COMPARISONS: dict[Choose, Callable[[Mapping[int, float]], Sequence[Pair]]] = {
    "best_worst": best_against_worst,
    "all": all_comparisons,
}


def spread(gaps: Mapping[Pair, float], most: int) -> tuple[Pair, ...]:
    """At most so many pairs: the widest gaps, and among equal gaps those of the least used completions.

    With rights and wrongs alone all gaps are equal, and a cap must not spend itself on one right answer.

    >>> spread({(0, 2): 1.0, (0, 3): 1.0, (1, 2): 1.0, (1, 3): 1.0}, 2)
    ((0, 2), (1, 3))
    """
    left, used = dict(gaps), Counter[int]()
    kept: list[Pair] = []
    while left and len(kept) < most:
        best = min(left, key=lambda pair: (-left[pair], used[pair[0]] + used[pair[1]], pair))
        del left[best]
        used.update(best)
        kept.append(best)
    return tuple(kept)

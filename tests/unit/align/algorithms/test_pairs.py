"""Pairs of a group's completions, by hand and by property."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.algorithms.preference.pairs import pair_up
from rollouts.types import Completion, Prompt, RolloutGroup, Score, ScoredGroup


def group(
    *values: float | None, source: str = "new", tokens: dict[int, tuple[int, ...]] | None = None
) -> ScoredGroup:
    """Completions of distinct tokens; None is a score that failed."""
    completions = [
        Completion(token_ids=ids, logprobs_T=(0.0,) * len(ids), text="", finish_reason="stop")
        for i in range(len(values))
        for ids in [(tokens or {}).get(i, (i + 3, 2))]
    ]
    return ScoredGroup(
        group=RolloutGroup(
            prompt=Prompt(id="p", text="p", source=source, owner="other", round="r"),  # type: ignore[arg-type]
            prompt_ids=(1, 2), completions_G=tuple(completions), policy="v", seed=0,
        ),
        scores_G=tuple(
            Score(value=v, status="scored" if v is not None else "failed") for v in values
        ),
    )  # fmt: skip


def pairs(
    scored: ScoredGroup, choose: Any = "best_worst", margin: float = 0.0, cap: int = 99
) -> Any:
    found = pair_up(scored, choose=choose, margin=margin, max_pairs=cap)
    return found.pairs, found.ties


def test_best_against_worst() -> None:
    assert pairs(group(0.5, 2.0, -1.0, 0.0)) == (((1, 2),), 0)
    assert pairs(group(1.0, 0.0, 1.0, 0.0)) == (((0, 1),), 0)
    assert pairs(group(0.7, 0.7, 0.7)) == ((), 1)


def test_all_comparisons_the_widest_first() -> None:
    assert pairs(group(0.0, 1.0, 3.0), "all") == (((2, 0), (2, 1), (1, 0)), 0)
    assert pairs(group(0.0, 1.0, 3.0), "all", cap=1) == (((2, 0),), 0)
    assert pairs(group(1.0, 1.0, 0.0), "all") == (((0, 2), (1, 2)), 1)


def test_a_cap_spreads_over_the_completions() -> None:
    assert pairs(group(1.0, 1.0, 0.0, 0.0), "all", cap=2) == (((0, 2), (1, 3)), 2)


def test_a_difference_below_the_margin_is_a_tie() -> None:
    scored = group(0.0, 0.4, 1.0)
    assert pairs(scored, "all", margin=0.5) == (((2, 0), (2, 1)), 1)
    assert pairs(scored, margin=1.0) == (((2, 0),), 0)
    assert pairs(scored, margin=1.1) == ((), 1)


def test_what_has_no_score_or_no_tokens_is_never_paired() -> None:
    assert pairs(group(None, 1.0, 0.0), "all") == (((1, 2),), 0)
    assert pairs(group(9.0, 1.0, 0.0, tokens={0: ()}), "all") == (((1, 2),), 0)
    assert pairs(group(1.0, None, None)) == ((), 0)
    assert pairs(group(None, None)) == ((), 0)


def test_the_same_tokens_are_a_tie_whatever_their_scores() -> None:
    assert pairs(group(1.0, 0.0, tokens={0: (5,), 1: (5,)})) == ((), 1)


@given(
    st.lists(st.none() | st.sampled_from([0.0, 0.5, 1.0, 2.0]), max_size=7),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(1, 6),
    st.sampled_from(["best_worst", "all"]),
)
def test_every_pair_is_decided(
    values: list[float | None], margin: float, cap: int, choose: Any
) -> None:
    found, ties = pairs(group(*values), choose, margin, cap)
    gaps = [values[better] - values[worse] for better, worse in found]  # type: ignore[operator]
    assert all(gap > 0 and gap >= margin for gap in gaps)
    assert gaps == sorted(gaps, reverse=True)
    assert len(found) == len(set(found)) <= cap
    everything, _ = pairs(group(*values), choose, margin)
    scored = sum(value is not None for value in values)
    compared = scored * (scored - 1) // 2 if choose == "all" else int(scored > 1)
    assert len(everything) + ties == compared


@given(st.permutations([0.0, 0.5, 0.5, 1.0, 2.0]))
def test_the_order_of_completions_does_not_matter(values: list[float]) -> None:
    def scores(choose: str) -> list[tuple[float, float]]:
        found, _ = pairs(group(*values), choose)
        return sorted((values[better], values[worse]) for better, worse in found)

    assert scores("best_worst") == [(2.0, 0.0)]
    assert len(scores("all")) == 9
    assert scores("all")[0] == pytest.approx((0.5, 0.0))

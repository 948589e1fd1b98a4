"""Splitting work over engines: worked examples and the bound of the greedy rule."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rollouts.pool.balance import num_chunks, split


def test_dearest_first_by_hand():
    # 7 | 5, then 4 to the lighter (5): 7 | 9, then 3 to 7: 10 | 9, then 1 to 9: 10 | 10.
    assert split([1, 3, 4, 5, 7], 2) == [(1, 4), (0, 2, 3)]


def test_empty_shares_are_left_out():
    assert split([2], 3) == [(0,)]
    assert split([], 2) == []


def test_one_call_per_engine_until_a_batch_does_not_fit():
    assert num_chunks(1, 2, 64) == 2
    assert num_chunks(128, 2, 64) == 2
    assert num_chunks(129, 2, 64) == 4
    assert num_chunks(64 * 2 * 12, 2, 64) == 6


@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 6))
def test_every_item_once_and_no_share_far_above_the_mean(costs, bins):
    shares = split(costs, bins)
    assert sorted(i for share in shares for i in share) == list(range(len(costs)))
    loads = [sum(costs[i] for i in share) for share in shares]
    assert loads == sorted(loads, reverse=True)
    if costs:
        best = max(max(costs), sum(costs) / bins)
        assert loads[0] <= sum(costs) / bins + max(costs) and loads[0] <= 2 * best

"""Generalised advantage estimation by hand, in its limits, and whitening."""

from __future__ import annotations

from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.algorithms.policy_gradient.actor_critic.gae import (
    explained_variance,
    gae,
    terminal_rewards,
    whiten,
)

numbers = st.floats(-10, 10)
tokens = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=12)
shares = st.floats(0, 1)


def test_three_tokens_by_hand() -> None:
    """gamma .9, lam .5, so errors fade by .45 a token.

    delta = (.9*.4 - .5, .9*.2 - .4, 1 - .2) = (-.14, -.22, .8)
    A_3 = .8, A_2 = -.22 + .45*.8 = .14, A_1 = -.14 + .45*.14 = -.077
    """
    advantages_T, returns_T = gae(terminal_rewards(1.0, 3), (0.5, 0.4, 0.2), gamma=0.9, lam=0.5)
    assert advantages_T == pytest.approx((-0.077, 0.14, 0.8))
    assert returns_T == pytest.approx((0.423, 0.54, 1.0))


@given(tokens, shares)
def test_lam_0_is_the_one_step_error(tokens_T: list[tuple[float, float]], gamma: float) -> None:
    rewards_T, values_T = zip(*tokens_T, strict=True)
    following_T = (*values_T[1:], 0.0)
    expected = [r + gamma * n - v for r, n, v in zip(rewards_T, following_T, values_T, strict=True)]
    assert gae(rewards_T, values_T, gamma=gamma, lam=0.0)[0] == pytest.approx(expected)


@given(tokens, shares)
def test_lam_1_is_the_return_minus_the_value(
    tokens_T: list[tuple[float, float]], gamma: float
) -> None:
    rewards_T, values_T = zip(*tokens_T, strict=True)
    expected = [
        sum(gamma**later * reward for later, reward in enumerate(rewards_T[t:]))
        for t in range(len(rewards_T))
    ]
    advantages_T, returns_T = gae(rewards_T, values_T, gamma=gamma, lam=1.0)
    assert returns_T == pytest.approx(expected, abs=1e-9)
    differences = [a - (r - v) for a, r, v in zip(advantages_T, expected, values_T, strict=True)]
    assert differences == pytest.approx([0.0] * len(differences), abs=1e-9)


@given(numbers, st.lists(numbers, min_size=1, max_size=12), shares)
def test_a_critic_that_is_always_right_leaves_no_advantage(
    score: float, values_T: list[float], lam: float
) -> None:
    """Undiscounted, the right value of every token is the score to come."""
    right_T = [score] * len(values_T)
    advantages_T, returns_T = gae(
        terminal_rewards(score, len(right_T)), right_T, gamma=1.0, lam=lam
    )
    assert advantages_T == pytest.approx([0.0] * len(right_T))
    assert returns_T == pytest.approx(right_T)


def test_whitening_by_hand() -> None:
    # mean 2, squares 4 + 0 + 4 over 2: standard deviation 2
    (first, second) = whiten([[0.0, 2.0], [4.0]])
    assert first == pytest.approx((-1.0, 0.0))
    assert second == pytest.approx((1.0,))


@given(st.lists(st.lists(st.integers(-100, 100), min_size=1, max_size=5), min_size=1, max_size=5))
def test_whitening_keeps_shape_and_order(values_BT: list[list[int]]) -> None:
    white_BT = whiten(values_BT)
    assert [len(row) for row in white_BT] == [len(row) for row in values_BT]
    before = [value for row in values_BT for value in row]
    after = [value for row in white_BT for value in row]
    assert fmean(after) == pytest.approx(0.0, abs=1e-6)
    if len(set(before)) > 1:
        assert stdev(after) == pytest.approx(1.0, abs=1e-4)
        assert [after[i] for i in sorted(range(len(before)), key=before.__getitem__)] == sorted(
            after
        )
    else:
        assert set(after) == {0.0}


def test_explained_variance_by_hand() -> None:
    # Returns 0 and 2: mean 1, mean square 2, variance 1.
    assert explained_variance(1.0, 2.0, 0.0) == 1.0
    assert explained_variance(1.0, 2.0, 1.0) == 0.0
    assert explained_variance(1.0, 2.0, 3.0) == -2.0
    assert explained_variance(3.0, 9.0, 4.0) == 0.0

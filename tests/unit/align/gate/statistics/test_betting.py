"""Bets on bounded differences: wealth worked by hand, the level by counting, and what must not matter."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.gate.statistics.betting import BLOCKS, Wager, blocks, is_hopeless, lower_end, wager

UNITS = 2 * BLOCKS
DIFFERENCES = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=UNITS, max_size=UNITS)


def test_two_units_by_hand() -> None:
    """The cap is .9 / (1 - .5) = 1.8. sqrt(2 log 20 / (.25 * 2)) is more."""
    state = wager([0.0, 0.0], 0.5, 0.05, reach=1.0, units=2)
    assert state.log_wealth == pytest.approx(2 * math.log(1 + 1.8 * 0.5))
    assert state.p == pytest.approx(1 / 1.9**2)
    assert state.lacking == pytest.approx(math.log(20) - 2 * math.log(1.9))
    assert state.variance == pytest.approx(30 * 0.25 / 32)


def test_a_bet_below_the_cap_by_hand() -> None:
    """The first block of 10,000 has 104; it stakes sqrt(2 log 200 / 2500), above .8 * .02 / .25."""
    stake = max(0.8 * 0.02 / 0.25, math.sqrt(2 * math.log(200) / (0.25 * 10_000)))
    lost, won, same = 3, 5, 96
    state = wager([-1.0] * lost + [1.0] * won + [0.0] * same, 0.02, 0.005, reach=1.0, units=10_000)
    wealth = (
        lost * math.log1p(-0.98 * stake)
        + won * math.log1p(1.02 * stake)
        + same * math.log1p(0.02 * stake)
    )
    assert blocks(10_000)[0] == lost + won + same
    assert state.log_wealth == pytest.approx(wealth)


def test_nothing_that_is_lost_can_take_all() -> None:
    state = wager([-1.0] * 50, 0.02, 0.05, reach=1.0, units=50)
    assert state.p == 1.0
    assert state.lacking < math.inf


@pytest.mark.parametrize("alpha", [0.3, 0.05])
@pytest.mark.parametrize(("worse", "better"), [(-1.0, 0.0), (-1.0, 1.0), (-0.2, 0.1), (-1.0, 0.02)])
def test_the_level_holds_on_every_sequence_of_two_values(
    alpha: float, worse: float, better: float
) -> None:
    """A true mean of exactly minus the margin: all 2^9 sequences with their chances."""
    units, margin = 9, 0.05
    share = (better + margin) / (better - worse)
    passed = 0.0
    for drawn in product((worse, better), repeat=units):
        if wager(drawn, margin, alpha, reach=1.0, units=units).lacking == 0.0:
            lost = drawn.count(worse)
            passed += share**lost * (1 - share) ** (units - lost)
    assert passed <= alpha


@pytest.mark.parametrize("loss", [0.02, 0.03])
def test_a_rare_collapse_passes_no_more_often_than_alpha(loss: float) -> None:
    """All scores rise by .01 and a few collapse: where a t test accepts three times too often."""
    random = np.random.default_rng(0)
    share = (loss + 0.01) / 1.01
    passed = 0
    for _ in range(1000):
        values = np.where(random.random(500) < share, -1.0, 0.01)
        passed += wager(values.tolist(), loss, 0.05, reach=1.01, units=500).lacking == 0.0
    assert passed <= 50 + 3 * math.sqrt(50)


@given(DIFFERENCES)
def test_the_order_within_a_block_does_not_matter(values: list[float]) -> None:
    turned = [value for at in range(0, UNITS, 2) for value in (values[at + 1], values[at])]
    assert wager(values, 0.1, 0.05, reach=1.0, units=UNITS) == wager(
        turned, 0.1, 0.05, reach=1.0, units=UNITS
    )


@given(DIFFERENCES)
def test_what_comes_after_a_bet_was_won_does_not_matter(values: list[float]) -> None:
    state = wager([0.0] * 100 + values[:92], 0.3, 0.05, reach=1.0, units=UNITS)
    assert state.lacking == 0.0
    assert state == wager([0.0] * 100, 0.3, 0.05, reach=1.0, units=UNITS)


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=60))
def test_units_are_scaled_with_their_range(values: list[float]) -> None:
    scaled = wager([8 * v for v in values], 0.8, 0.05, reach=8.0, units=60)
    assert scaled.log_wealth == pytest.approx(
        wager(values, 0.1, 0.05, reach=1.0, units=60).log_wealth
    )


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=40))
def test_clusters_of_one_item_are_items(values: list[float]) -> None:
    alone = wager(values, 0.1, 0.05, reach=1.0, units=40)
    assert wager(values, 0.1, 0.05, reach=1.0, units=40, sizes=[1] * len(values)) == alone


def test_what_was_lost_by_chance_can_be_hopeless() -> None:
    assert not is_hopeless(wager([0.0] * 10, 0.1, 0.05, reach=1.0, units=500), 0.1, 490)
    assert is_hopeless(wager([-1.0] * 400, 0.1, 0.05, reach=1.0, units=500), 0.1, 100)
    assert is_hopeless(Wager(0.0, 0.1, 0.2, 500), 0.1, 0)
    assert not is_hopeless(Wager(3.0, 0.0, 0.2, 300), 0.1, 200)


def test_the_interval_ends_where_the_bet_is_won() -> None:
    values = [0.0] * 900 + [-1.0] * 40 + [1.0] * 60
    random = np.random.default_rng(3)
    values = random.permutation(values).tolist()
    low = lower_end(values, 0.05, reach=1.0, units=1000)
    assert -0.03 < low < 0.02
    assert wager(values, -low + 0.002, 0.05, reach=1.0, units=1000).lacking == 0.0
    assert wager(values, -low - 0.002, 0.05, reach=1.0, units=1000).lacking > 0.0


@pytest.mark.parametrize("values", [[1.1], [0.0] * 3])
def test_what_cannot_be_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        wager(values, 0.1, 0.05, reach=1.0, units=2)

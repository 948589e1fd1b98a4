"""Gaffke's test: exact where that can be worked out, at its level where every sample can be listed."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from align.gate.statistics.significance import critical_value, items_needed, power, smallest_margin
from align.gate.statistics.worst_case import (
    fewest_units,
    simplex_tail,
    worst_case_interval,
    worst_case_p,
)

ALPHAS = (0.005, 0.05, 0.2)
SCORES = st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=40)


@pytest.mark.parametrize(
    ("n", "lost", "margin"), [(50, 2, 0.15), (1500, 0, 0.004), (1500, 3, 0.01), (400, 30, 0.05)]
)
def test_with_two_values_it_is_the_exact_binomial_test(n: int, lost: int, margin: float) -> None:
    """Clopper and Pearson's: P(X <= lost) of X binomial with the margin as its rate."""
    values = [-1.0] * lost + [0.0] * (n - lost)
    p = worst_case_p(values, margin, reach=1.0)
    assert p == pytest.approx(stats.binom.cdf(lost, n, margin), rel=1e-8)
    exact = stats.beta.ppf(0.95, lost + 1, n - lost)
    assert worst_case_interval(values, 0.05, reach=1.0)[0] == pytest.approx(-exact, rel=1e-7)


def test_one_item_gives_markovs_bound() -> None:
    """A loss of 1 at worst and a gain of .2: the mean is -.1 with a chance of at most .9 / 1.2."""
    assert worst_case_p([0.2], 0.1, reach=1.0) == pytest.approx(0.9 / 1.2)


def test_the_tail_is_that_of_drawn_weights() -> None:
    random = np.random.default_rng(0)
    for size in (3, 10, 60):
        values = random.normal(0.3, 1.0, size)
        weights = random.dirichlet(np.ones(size), 200_000)
        drawn = float((weights @ values <= 0).mean())
        assert simplex_tail(values) == pytest.approx(drawn, abs=4e-3)


@pytest.mark.parametrize("shift", [0.0, 0.2, 1.0, 5.0])
def test_the_tail_of_a_few_exponentials_by_partial_fractions(shift: float) -> None:
    """P(sum of G_i a_i <= 0) is the sum over negative a_j of prod over i != j of a_j / (a_j - a_i)."""
    values = np.array([-1.0, -0.4, 0.3, 0.7, 1.1]) + shift * np.array([0, 0, 1, 2, 3])
    expected = math.fsum(math.prod(a / (a - b) for b in values if b != a) for a in values if a < 0)
    assert simplex_tail(values) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_the_level_holds_for_every_distribution_of_a_grid(n: int, alpha: float) -> None:
    """Exact: every sample of n items with three values, weighted by its chance where the margin is lost."""
    values = (-1.0, -0.3, 0.4)
    tables = [(a, b, n - a - b) for a, b in product(range(n + 1), repeat=2) if a + b <= n]
    for first, second in product(np.linspace(0.0, 1.0, 9), repeat=2):
        shares = (first, (1 - first) * second, (1 - first) * (1 - second))
        margin = -float(np.dot(shares, values))
        if not 0.0 < margin < 1.0:
            continue
        accepted = math.fsum(
            stats.multinomial.pmf(table, n, shares)
            for table in tables
            if worst_case_p(np.repeat(values, table).tolist(), margin, reach=1.0) <= alpha
        )
        assert accepted <= alpha + 1e-9


@given(SCORES, st.floats(0.01, 0.9), st.sampled_from(ALPHAS))
def test_the_interval_inverts_the_test(values: list[float], margin: float, alpha: float) -> None:
    p = worst_case_p(values, margin, reach=2.0)
    low, high = worst_case_interval(values, alpha, reach=2.0)
    assert -2.0 <= low <= math.fsum(values) / len(values) <= high <= 2.0 or len(set(values)) == 1
    if abs(low + margin) > 1e-6:
        assert (p <= alpha) == (low > -margin)


@given(SCORES, st.sampled_from([2.0, None]), st.randoms(use_true_random=False))
def test_neither_order_nor_scale_matters(
    values: list[float], reach: float | None, random: Any
) -> None:
    shuffled, scaled = random.sample(values, len(values)), [8 * value for value in values]
    p, interval = (
        worst_case_p(values, 0.1, reach=reach),
        worst_case_interval(values, 0.05, reach=reach),
    )
    assert worst_case_p(shuffled, 0.1, reach=reach) == p
    assert worst_case_interval(shuffled, 0.05, reach=reach) == interval
    further = None if reach is None else 8 * reach
    assert worst_case_p(scaled, 0.8, reach=further) == pytest.approx(p, rel=1e-6, abs=1e-9)
    ends = worst_case_interval(scaled, 0.05, reach=further)
    assert ends == pytest.approx([8 * end for end in interval], abs=1e-6)


@given(SCORES, st.sampled_from([2.0, None]))
def test_the_two_ends_are_mirrored(values: list[float], reach: float | None) -> None:
    there = worst_case_interval(values, 0.05, reach=reach)
    back = worst_case_interval([-v for v in values], 0.05, reach=reach)
    assert there == pytest.approx((-back[1], -back[0]), abs=1e-7)


def test_clusters_of_copies_are_the_evidence_of_one() -> None:
    values = np.random.default_rng(1).normal(0.0, 0.3, 40)
    copied = (4 * values).tolist(), [4] * 40
    p = worst_case_p(values.tolist(), 0.2)
    assert worst_case_p(copied[0], 0.2, sizes=copied[1]) == pytest.approx(p)
    interval = worst_case_interval(values.tolist(), 0.05)
    assert worst_case_interval(copied[0], 0.05, sizes=copied[1]) == pytest.approx(interval)


def test_a_large_cluster_cannot_decide_alone() -> None:
    """One cluster of 300 that gained, 30 of 10 that did not change: its weight may be next to nothing."""
    sums, sizes = [60.0, *[0.0] * 29, -3.0], [300, *[10] * 30]
    assert worst_case_p(sums, 0.01, sizes=sizes) > 0.05


def test_enough_units_have_seen_rare_damage() -> None:
    """.95^58 = .051, .95^59 = .0485; .95^103 = .00507, .95^104 = .0048."""
    assert [fewest_units(alpha) for alpha in (0.05, 0.005)] == [59, 104]
    assert fewest_units(0.05, share=0.5) == 5
    assert fewest_units(0.05, share=0.0) == fewest_units(0.05, share=1.0) == 1


# what a plan says of it


@pytest.mark.parametrize(
    ("n", "sd", "margin", "alpha"),
    [
        (200, 0.1, 0.025, 0.05),
        (200, 0.1, 0.037, 0.005),
        (400, 0.3, 0.07, 0.01),
        (1000, 0.3, 0.035, 0.005),
    ],
)
def test_planned_power_is_what_equal_candidates_have(
    n: int, sd: float, margin: float, alpha: float
) -> None:
    random = np.random.default_rng(2)
    draws = 400
    drawn = (random.normal(0.0, sd, n).clip(-1, 1) for _ in range(draws))
    passed = sum(worst_case_p(values.tolist(), margin, reach=1.0) <= alpha for values in drawn)
    planned = power(n, sd**2, margin, alpha, pass_fail=False, reach=1.0)
    assert passed / draws == pytest.approx(planned, abs=0.03 + 3 * math.sqrt(0.25 / draws))
    assert 0.3 < planned < 0.99


def test_the_critical_value_is_an_exponential_beside_a_normal() -> None:
    """P(Z <= E) of Z normal with mean z r and deviation r, E exponential, is alpha at the critical z."""
    random = np.random.default_rng(3)
    for n, psi, alpha in ((100, 0.1, 0.05), (30, 0.01, 0.05), (4000, 0.1, 0.05)):
        ratio = math.sqrt(n * psi)
        z = critical_value(n, psi, alpha, reach=1.0)
        drawn = random.normal(z * ratio, ratio, 400_000) <= random.exponential(size=400_000)
        assert drawn.mean() == pytest.approx(alpha, abs=2e-3)
    assert critical_value(10**9, 0.1, 0.05, reach=1.0) == pytest.approx(
        stats.norm.ppf(0.95), abs=1e-3
    )


@given(
    st.sampled_from([0.005, 0.05]),
    st.floats(0.001, 0.5),
    st.floats(0.01, 0.3),
    st.sampled_from([0.8, 0.95]),
)
def test_power_margin_and_items_agree(
    alpha: float, psi: float, margin: float, wanted: float
) -> None:
    n = items_needed(psi, margin, alpha, wanted, pass_fail=False, reach=1.0)
    assert power(n, psi, margin, alpha, pass_fail=False, reach=1.0) >= wanted - 1e-9
    assert smallest_margin(n, psi, alpha, wanted, pass_fail=False, reach=1.0) <= margin * (1 + 1e-9)
    if n > 2:
        assert power(n - 2, psi, margin, alpha, pass_fail=False, reach=1.0) < wanted

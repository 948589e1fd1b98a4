"""The paired bootstrap of corpus metrics: invariances, a known mean, and its level under skewed losses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from align.gate.statistics.bootstrap import paired_bootstrap, pooled
from align.gate.statistics.worst_case import worst_case_p
from rewards.library.corpus.formulas import F1, Array, BleuFormula, ChrfFormula, EditScore

Draw = Callable[[np.random.Generator, int], tuple[Array, Array]]


def shares(right: Array) -> Array:
    """Return counts of `EditScore` that make its value the mean of pass/fail items of one aspect."""
    counts = np.zeros((len(right), 8))
    counts[:, 0], counts[:, 4] = right, 1.0
    return counts


def spans(random: np.random.Generator, n: int) -> Array:
    size = random.poisson(1.5, n) + (random.random(n) < 0.05) * random.integers(5, 30, n)
    right = random.binomial(size, 0.8)
    return np.stack([right, random.poisson(0.3, n), size - right], axis=1).astype(float)


def lost_spans(counts: Array, where: np.ndarray) -> Array:
    """Return counts of answers that name as much, all of it wrong, where they are damaged."""
    there = counts[:, 0] + counts[:, 2]
    return np.where(where[:, None], np.stack([0 * there, there, there], axis=1), counts)


def equal_spans(random: np.random.Generator, n: int) -> tuple[Array, Array]:
    first, second = spans(random, n), spans(random, n)
    # One text, answered twice: as much to find.
    second[:, 2] = first[:, 0] + first[:, 2]
    second[:, 0] = np.minimum(second[:, 0], second[:, 2])
    second[:, 2] -= second[:, 0]
    swap = random.random(n) < 0.5
    return np.where(swap[:, None], first, second), np.where(swap[:, None], second, first)


def rare_damage(random: np.random.Generator, n: int) -> tuple[Array, Array]:
    before = spans(random, n)
    return lost_spans(before, random.random(n) < 0.03), before


def damaged_long_texts(random: np.random.Generator, n: int) -> tuple[Array, Array]:
    before = spans(random, n)
    long = before[:, 0] + before[:, 2] >= 8
    return lost_spans(before, long & (random.random(n) < 0.3)), before


def rare_edits(random: np.random.Generator, n: int) -> tuple[Array, Array]:
    aspect = random.choice(4, n, p=[0.4, 0.3, 0.25, 0.05])
    before = np.zeros((n, 8))
    before[np.arange(n), 4 + aspect] = 1.0
    before[np.arange(n), aspect] = random.random(n) < 0.8
    after = before.copy()
    after[(aspect == 3) & (random.random(n) < 0.2), :4] = 0.0
    return after, before


@pytest.mark.parametrize(
    ("draw", "formula"),
    [
        (equal_spans, F1()),
        (rare_damage, F1()),
        (damaged_long_texts, F1()),
        (rare_edits, EditScore()),
    ],
)
@pytest.mark.parametrize("n", [40, 150])
def test_a_loss_of_the_margin_passes_no_more_often_than_alpha(
    draw: Draw, formula: F1 | EditScore, n: int
) -> None:
    alpha, times, random = 0.1, 120, np.random.default_rng(7)
    after, before = draw(random, 100_000)
    margin = formula.value(before) - formula.value(after)
    margin = max(0.0, margin) if draw is not equal_spans else 0.0
    passed = sum(
        paired_bootstrap(*draw(random, n), formula, margin, alpha, draws=199).p <= alpha
        for _ in range(times)
    )
    # Twenty-four of 120 would be 3.6 deviations above the level.
    assert passed < 24


def test_it_has_the_power_to_pass_an_equal_candidate_and_to_see_a_gain() -> None:
    before = spans(np.random.default_rng(3), 800)
    same = paired_bootstrap(before, before, F1(), 0.05, 0.05)
    assert same.p <= 0.05 and same.difference == 0.0 and same.variance == 0.0
    assert same.interval[0] <= 0.0 <= same.interval[1]
    better = before.copy()
    better[:, 0] += better[:, 2]
    better[:, 2] = 0.0
    gain = paired_bootstrap(better, before, F1(), 0.0, 0.05)
    assert gain.p <= 0.05 and gain.interval[0] > 0.0
    assert paired_bootstrap(before, better, F1(), 0.05, 0.05).p > 0.5


def test_of_a_mean_it_is_gaffkes_test() -> None:
    random = np.random.default_rng(11)
    before = (random.random(80) < 0.8).astype(float)
    after = np.where(random.random(80) < 0.06, 0.0, before)
    result = paired_bootstrap(shares(after), shares(before), EditScore(), 0.1, 0.05, draws=40_000)
    expected = worst_case_p(list(after - before), 0.1, reach=1.0)
    # The total weight of asked questions has the added one's too, as in the exact test.
    assert result.p == pytest.approx(expected, abs=0.01)
    assert result.difference == pytest.approx(float(np.mean(after - before)))
    assert result.variance == pytest.approx(float(np.var(after - before, ddof=1)), rel=1e-6)
    assert result.reach == pytest.approx(1.0 + result.difference)


def test_the_lower_end_and_the_p_value_agree() -> None:
    before = spans(np.random.default_rng(1), 60)
    after = lost_spans(before, np.arange(60) % 20 == 0)
    for alpha in (0.005, 0.05, 0.2):
        low, high = paired_bootstrap(after, before, F1(), 0.0, alpha).interval
        assert low < high
        for margin, passes in ((-low - 1e-6, False), (-low + 1e-6, True)):
            p = paired_bootstrap(after, before, F1(), margin, alpha).p
            assert (p <= alpha) is passes


@pytest.mark.parametrize("formula", [F1(), ChrfFormula(beta=2.0), BleuFormula()])
def test_order_and_repetition_of_the_call_change_nothing(
    formula: F1 | ChrfFormula | BleuFormula,
) -> None:
    random = np.random.default_rng(2)
    if isinstance(formula, F1):
        before = spans(random, 50)
    else:
        width = 18 if isinstance(formula, ChrfFormula) else 10
        before = np.sort(random.integers(0, 9, (50, width)), axis=1).astype(float)[:, ::-1].copy()
    after = before[random.permutation(50)]
    first = paired_bootstrap(after, before, formula, 0.02, 0.05)
    assert first == paired_bootstrap(after, before, formula, 0.02, 0.05)
    order = random.permutation(50)
    assert first == paired_bootstrap(after[order], before[order], formula, 0.02, 0.05)


def test_clusters_are_pooled_in_their_order() -> None:
    counts = np.array([[1.0, 0.0], [2.0, 1.0], [4.0, 3.0]])
    assert pooled(counts, ["x", "y", "x"]).tolist() == [[5.0, 3.0], [2.0, 1.0]]

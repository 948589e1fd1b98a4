"""The gate's tests keep their level and agree with scipy and with brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from align.gate.statistics.significance import (
    exact_interval,
    holm,
    item_means,
    items_needed,
    joint_power,
    mcnemar_exact,
    normal_quantile,
    paired_t_noninferiority,
    power,
    smallest_margin,
    tango_interval,
    tango_noninferiority,
)

MARGINS = st.floats(-0.9, 0.9).filter(lambda m: abs(m) > 1e-6)


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int, int]:
    """(lost, won, n)"""
    n = draw(st.integers(1, 400))
    lost = draw(st.integers(0, n))
    return lost, draw(st.integers(0, n - lost)), n


def brute_force_z(lost: int, won: int, n: int, d: float) -> float:
    """The score statistic with the constrained likelihood maximised numerically."""

    def negative_log_likelihood(q: float) -> float:
        cells = ((lost, q), (won, q + d), (n - lost - won, 1 - 2 * q - d))
        return -sum(k * math.log(max(share, 1e-300)) for k, share in cells if k)

    best = optimize.minimize_scalar(
        negative_log_likelihood,
        bounds=(max(0.0, -d), (1 - d) / 2),
        method="bounded",
        options={"xatol": 1e-12},
    ).x
    return float((won - lost - n * d) / math.sqrt(n * (2 * best + d * (1 - d))))


@pytest.mark.parametrize(
    ("lost", "won", "n", "d"),
    [
        (18, 0, 1500, -0.02),
        (3, 40, 200, 0.1),
        (7, 5, 60, -0.05),
        (0, 0, 50, -0.02),
        (12, 30, 99, 0),
    ],
)
def test_tango_is_the_constrained_maximum_likelihood(lost: int, won: int, n: int, d: float) -> None:
    expected = brute_force_z(lost, won, n, d)
    assert tango_noninferiority(lost, won, n, -d).z == pytest.approx(expected, rel=1e-4)


def test_tango_at_margin_zero_is_mcnemars_statistic() -> None:
    assert tango_noninferiority(4, 12, 100, 0.0).z == pytest.approx((12 - 4) / math.sqrt(16))


def test_tango_with_nothing_lost_does_not_pass_a_small_suite() -> None:
    # z = sqrt(n m / (1 - m)): sqrt(50 * .02 / .98) = 1.010
    small, large = (tango_noninferiority(0, 0, n, 0.02) for n in (50, 1500))
    assert small.z == pytest.approx(math.sqrt(1 / 0.98))
    assert small.p > 0.15
    assert large.p < 1e-7


@pytest.mark.parametrize(
    ("n", "psi", "margin", "level"),
    [(30, 0.05, 0.03, 0.0115), (50, 0.10, 0.05, 0.0341), (100, 0.06, 0.03, 0.0403)],
)
def test_tango_keeps_its_level_at_the_margin(
    n: int, psi: float, margin: float, level: float
) -> None:
    """Exact: every table of n items, weighted by its probability where the loss is the margin.

    The Wald test's false accepts here are 29%, 9% and 8% instead of 5%.
    """
    shares = ((psi + margin) / 2, (psi - margin) / 2, 1 - psi)
    tables = [(lost, won) for lost in range(n + 1) for won in range(n + 1 - lost)]
    rows = np.array([(lost, won, n - lost - won) for lost, won in tables])
    weights = stats.multinomial.pmf(rows, n, shares)
    likely = [(table, w) for table, w in zip(tables, weights, strict=True) if w > 1e-12]
    accepted = math.fsum(w for t, w in likely if tango_noninferiority(*t, n, margin).p <= 0.05)
    assert accepted <= 0.05
    assert accepted == pytest.approx(level, abs=5e-4)


@given(counts(), MARGINS)
def test_swapping_the_two_negates_tango(table: tuple[int, int, int], margin: float) -> None:
    lost, won, n = table
    there = tango_noninferiority(lost, won, n, margin).z
    back = tango_noninferiority(won, lost, n, -margin).z
    assert there == pytest.approx(-back, rel=1e-6, abs=1e-6)


@given(counts(), MARGINS, MARGINS)
def test_a_larger_margin_never_makes_tango_stricter(
    table: tuple[int, int, int], one: float, other: float
) -> None:
    smaller, larger = sorted((one, other))
    strict, lax = (tango_noninferiority(*table, margin).z for margin in (smaller, larger))
    assert lax >= strict - 1e-9


@given(counts(), st.sampled_from([0.005, 0.05, 0.2]))
def test_tango_interval_inverts_the_test(table: tuple[int, int, int], alpha: float) -> None:
    lost, won, n = table
    low, high = tango_interval(lost, won, n, alpha)
    assert -1.0 <= low <= (won - lost) / n + 1e-12
    assert (won - lost) / n - 1e-12 <= high <= 1.0
    critical = normal_quantile(1 - alpha)
    if low > -1.0 and abs(low) > 1e-9:
        assert tango_noninferiority(lost, won, n, -low).z == pytest.approx(critical, rel=1e-3)
    mirrored = tango_interval(won, lost, n, alpha)
    assert (low, high) == pytest.approx((-mirrored[1], -mirrored[0]), abs=1e-9)


def test_tango_interval_is_where_brute_force_crosses() -> None:
    low, high = tango_interval(1, 3, 44, 0.025)
    ends = [
        optimize.brentq(lambda d, z=z: brute_force_z(1, 3, 44, d) - z, -0.9, 0.9)
        for z in (1.959964, -1.959964)
    ]
    assert (low, high) == pytest.approx(ends, abs=1e-5)


@pytest.mark.parametrize("table", [(-1, 0, 10), (6, 5, 10), (0, 0, 0)])
def test_tango_refuses_what_are_no_counts(table: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="not counts"):
        tango_noninferiority(*table, 0.1)


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=40), st.floats(-1, 1))
def test_paired_t_is_scipys(differences: list[float], margin: float) -> None:
    if np.std(differences) < 1e-6:
        return
    ours = paired_t_noninferiority(differences, margin, alpha=0.01)
    theirs = stats.ttest_1samp(differences, -margin, alternative="greater")
    assert (ours.t, ours.p) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-6, abs=1e-8)
    interval = stats.ttest_1samp(differences, 0.0).confidence_interval(0.98)
    assert ours.interval == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-8)
    assert ours.dof == len(differences) - 1


def test_clusters_widen_the_interval_of_copied_items() -> None:
    """Every item taken four times, each family a cluster, is the evidence of taking it once."""
    once = [0.1, -0.3, 0.2, 0.0, -0.2, 0.4]
    copied = [d for d in once for _ in range(4)]
    labels = [label for label in "abcdef" for _ in range(4)]
    honest = paired_t_noninferiority(copied, 0.1, clusters=labels)
    single = paired_t_noninferiority(once, 0.1)
    assert honest.dof == 5
    assert honest.t == pytest.approx(single.t)
    assert paired_t_noninferiority(copied, 0.1).p < honest.p


def test_paired_t_without_spread_goes_by_the_sign() -> None:
    assert paired_t_noninferiority([0.0] * 8, 0.1).p == 0.0
    assert paired_t_noninferiority([-0.5] * 8, 0.1).p == 1.0
    assert paired_t_noninferiority([0.0] * 8, 0.0).p == 0.5


def test_paired_t_needs_two_independent_items() -> None:
    with pytest.raises(ValueError, match="two independent items, got 1"):
        paired_t_noninferiority([0.1, 0.2], 0.1, clusters=["a", "a"])


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test(lost: int, won: int) -> None:
    expected = stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert mcnemar_exact(lost, won) == pytest.approx(expected)


def test_mcnemar_of_many_items_does_not_overflow() -> None:
    assert 0 < mcnemar_exact(900, 1100) < 1e-4


@pytest.mark.parametrize(
    ("psi", "margin", "published", "items"),
    [
        (0.05, 0.02, 773, 837), (0.05, 0.005, 12366, 12438), (0.10, 0.03, 687, 717),
        (0.20, 0.05, 495, 507),
    ],
)  # fmt: skip
def test_items_needed_are_the_published_table_with_tangos_variance(
    psi: float, margin: float, published: int, items: int
) -> None:
    """The table is of Wald's test, whose variance is psi; Tango's is that under the null: a little more."""
    wald = (normal_quantile(0.95) + normal_quantile(0.8)) ** 2 * psi / margin**2
    assert math.ceil(wald) == published < items
    assert items_needed(psi, margin, 0.05) == items
    assert smallest_margin(items, psi, 0.05) == pytest.approx(margin, rel=1e-3)


def exact_power(n: int, psi: float, loss: float, margin: float, alpha: float) -> float:
    """Chance that Tango's test passes: changed items are binomial, and so are lost ones among them."""
    chance = 0.0
    for changed in range(n + 1):
        if (mass := stats.binom.pmf(changed, n, psi)) < 1e-9:
            continue
        low, high = -1, changed
        while low < high:
            middle = (low + high + 1) // 2
            passes = tango_noninferiority(middle, changed - middle, n, margin).p <= alpha
            low, high = (middle, high) if passes else (low, middle - 1)
        chance += mass * stats.binom.cdf(low, changed, (psi + loss) / 2 / psi)
    return float(chance)


@pytest.mark.parametrize("alpha", [0.05, 0.005])
@pytest.mark.parametrize("share", [0.0, 1 / 3, 1.0], ids=["equal", "a third", "the margin"])
@pytest.mark.parametrize(
    ("n", "psi", "margin"),
    [(200, 0.1, 0.05), (400, 0.06, 0.03), (600, 0.1, 0.03), (1500, 0.05, 0.02), (300, 0.3, 0.1)],
)
def test_power_is_the_exact_chance_to_two_points(
    n: int, psi: float, margin: float, share: float, alpha: float
) -> None:
    loss = share * margin
    exact = exact_power(n, psi, loss, margin, alpha)
    assert power(n, psi, margin, alpha, loss=loss) == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("pass_fail", [True, False], ids=["pass or fail", "scores"])
def test_a_loss_takes_room_from_the_margin(pass_fail: bool) -> None:
    n, psi, margin, alpha = 600, 0.1, 0.03, 0.05
    chances = [
        power(n, psi, margin, alpha, loss=loss, pass_fail=pass_fail)
        for loss in (0.0, 0.01, 0.02, 0.03, 0.05)
    ]
    assert chances == sorted(chances, reverse=True)
    # By hand: (.03 - .01) sqrt(600 / .1) = 1.549, less 1.645, is -.096, and P(Z <= -.096) = .462.
    # Tango's test reckons with .10425 in place of .1: .490 - 1.645 sqrt(.10425) = -.041, over the mean's
    # own sqrt(.1 - .01^2) = .316 it is -.130, and P(Z <= -.130) = .448.
    assert chances[1] == pytest.approx(0.448 if pass_fail else 0.462, abs=1e-3)
    assert chances[3] == pytest.approx(alpha)
    assert joint_power(n, psi, [margin], alpha, loss=0.01, pass_fail=pass_fail) == chances[1]


def test_what_is_lost_has_changed() -> None:
    assert power(900, 0.01, 0.1, 0.05, loss=0.05) == power(900, 0.05, 0.1, 0.05, loss=0.05)
    assert power(900, 0.0, 0.1, 0.05, loss=0.1) == pytest.approx(0.05)


@given(st.sampled_from([0.005, 0.05]), st.floats(0.005, 0.2))
def test_as_many_items_as_needed_pass_where_nothing_differs(alpha: float, margin: float) -> None:
    n = items_needed(0.0, margin, alpha)
    assert tango_noninferiority(0, 0, n, margin).p <= alpha * (1 + 1e-9)
    assert n < 2 or tango_noninferiority(0, 0, n - 1, margin).p > alpha
    assert smallest_margin(n, 0.0, alpha) <= margin * (1 + 1e-9)


def test_the_promised_power_is_real() -> None:
    """20 points of discordance, an equal candidate, 2000 simulated suites of the size asked for."""
    n = items_needed(0.2, 0.05, 0.05, power=0.8)
    draws = np.random.default_rng(0).multinomial(n, [0.1, 0.1, 0.8], size=2000)
    passed = [tango_noninferiority(int(b), int(c), n, 0.05).p <= 0.05 for b, c, _ in draws]
    assert np.mean(passed) == pytest.approx(0.8, abs=0.03)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_exact_interval_is_scipys(table: tuple[int, int]) -> None:
    failures, n = table
    theirs = stats.binomtest(failures, n).proportion_ci(0.9, "exact")
    assert exact_interval(failures, n, 0.05) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize(
    ("n", "rate"), [(10, 0.26), (20, 0.14), (50, 0.058), (100, 0.03), (300, 0.01)]
)
def test_a_list_without_a_failure_still_allows_some(n: int, rate: float) -> None:
    low, high = exact_interval(0, n, 0.05)
    assert low == 0.0
    assert high == pytest.approx(1 - 0.05 ** (1 / n))
    assert high == pytest.approx(rate, rel=0.02)


@pytest.mark.parametrize("table", [(-1, 10), (11, 10), (0, 0)])
def test_the_exact_interval_refuses_what_is_no_count(table: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no count"):
        exact_interval(*table, 0.05)


def test_repeated_samples_of_an_item_are_one_item() -> None:
    once = {"a": 0.5, "b": -0.25, "c": 0.0}
    sampled = [("a", 1.0), ("b", -0.5), ("a", 0.0), ("c", 0.0), ("b", 0.0), ("c", 0.0)]
    means = item_means([value for _, value in sampled], [item for item, _ in sampled])
    assert means == once
    assert list(means) == ["a", "b", "c"]
    assert paired_t_noninferiority(list(means.values()), 0.3).dof == 2
    with pytest.raises(ValueError, match="argument"):
        item_means([1.0, 2.0], ["a"])


def test_holm_by_hand() -> None:
    # Sorted .01, .02, .03, .04, times 4, 3, 2, 1: .04, .06, .06, .04, and never below the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_lies_between_no_correction_and_bonferronis(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for p, its in zip(p_values, adjusted, strict=True):
        assert p <= its <= min(1.0, len(p_values) * p) or its == max(adjusted)
    assert min(adjusted) == min(1.0, len(p_values) * min(p_values))
    shown = sorted(zip(p_values, adjusted, strict=True))
    assert [its for _, its in shown] == sorted(its for _, its in shown)


@given(
    st.sampled_from([0.005, 0.05]),
    st.floats(0.01, 0.5),
    st.floats(0.005, 0.3),
    st.sampled_from([0.8, 0.95]),
    st.booleans(),
)
def test_power_margin_and_items_are_one_relation(
    alpha: float, psi: float, margin: float, wanted: float, pass_fail: bool
) -> None:
    n = items_needed(psi, margin, alpha, wanted, pass_fail=pass_fail)
    assert power(n, psi, margin, alpha, pass_fail=pass_fail) >= wanted - 1e-9
    assert smallest_margin(n, psi, alpha, wanted, pass_fail=pass_fail) <= margin * (1 + 1e-9)
    if n > 2:
        assert power(n - 2, psi, margin, alpha, pass_fail=pass_fail) < wanted


def test_power_where_nothing_differs() -> None:
    enough = items_needed(0.0, 0.02, 0.05)
    assert power(enough, 0.0, 0.02, 0.05) == 1.0
    assert power(enough - 1, 0.0, 0.02, 0.05) == 0.0


@pytest.mark.parametrize("margins", [(0.03, 0.03), (0.03, 0.04, 0.05), (0.02, 0.5, 0.5)])
def test_joint_power_is_a_multivariate_normal_probability(margins: tuple[float, ...]) -> None:
    n, psi, alpha = 400, 0.1, 0.02
    rooms = [margin * math.sqrt(n / psi) - stats.norm.ppf(1 - alpha) for margin in margins]
    correlation = np.full((len(rooms), len(rooms)), 0.5) + 0.5 * np.eye(len(rooms))
    expected = stats.multivariate_normal(cov=correlation).cdf(rooms)
    assert joint_power(n, psi, margins, alpha, pass_fail=False) == pytest.approx(expected, abs=1e-4)


def test_joint_power_is_what_equal_snapshots_do() -> None:
    """20,000 decisions on a candidate that is as good as parent, best and start, each with its noise."""
    rng = np.random.default_rng(0)
    n, variance, margin, alpha = 100, 1.0, 0.3, 0.05
    candidate, *others = rng.normal(scale=math.sqrt(variance / 2 / n), size=(4, 20_000))
    lower = stats.norm.ppf(1 - alpha) * math.sqrt(variance / n)
    passed = np.all([candidate - other - lower > -margin for other in others], axis=0)
    found = joint_power(n, variance, [margin] * 3, alpha, pass_fail=False)
    assert found == pytest.approx(passed.mean(), abs=0.015)

"""The gate's tests keep their level on drawn data: seeded, and decided once per distinct table."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace

import numpy as np
import pytest

from align.gate.statistics.significance import (
    exact_interval,
    holm,
    item_means,
    mcnemar_exact,
    normal_quantile,
    paired_t_noninferiority,
    tango_interval,
    tango_noninferiority,
)
from benchmarks.gate import ALPHA, KEPT, LOST, accepted, level, rules
from benchmarks.levels import CASES, Case, case_levels, exceeded

# One false acceptance more or less in a hundred is the claim; three standard errors are on top.
TABLES = 20_000
NOISE = 3 * math.sqrt(ALPHA * (1 - ALPHA) / TABLES)


@pytest.mark.parametrize("n", [30, 100, 500, 2000])
def test_a_loss_of_the_margin_passes_as_often_as_alpha_says(n: int) -> None:
    found = level(np.random.default_rng(n), 0.3, 0.1, n, TABLES)
    assert found["tango"] == pytest.approx(ALPHA, abs=0.01 + NOISE)


@pytest.mark.parametrize("n", [30, 50, 200, 1000])
def test_rare_changes_make_tango_stricter_and_wald_worthless(n: int) -> None:
    found = level(np.random.default_rng(n), 0.05, 0.03, n, TABLES)
    assert found["tango"] <= ALPHA + 0.01 + NOISE
    assert found["wald"] > ALPHA + 0.005


@pytest.mark.parametrize(
    ("rule", "rounds"),
    [("no significant drop", 12.8), ("not worse than parent", 7.2)],
)
def test_what_a_campaign_of_losses_gets_through(rule: str, rounds: float) -> None:
    """Of 20: Phi(1.645 - .01 / se) and Phi(.01 / se - 1.645), se = sqrt(.12 / 2000)."""
    found = accepted(np.random.default_rng(0), rules()[rule], -0.01, campaigns=30)
    assert found["rounds"] == pytest.approx(rounds, abs=1.2)
    assert found["points"] == pytest.approx(-found["rounds"])


@pytest.mark.parametrize("name", [name for name, rule in rules().items() if rule.promised])
def test_the_fixed_anchor_stops_losses_and_lets_equals_pass(name: str) -> None:
    random, rule = np.random.default_rng(1), rules()[name]
    assert accepted(random, rule, -0.01, campaigns=20)["rounds"] <= LOST
    assert accepted(random, rule, 0.0, campaigns=20)["rounds"] >= KEPT


def test_the_interval_covers_what_it_says() -> None:
    psi, truth, n = 0.2, -0.05, 300
    shares = ((psi - truth) / 2, (psi + truth) / 2, 1 - psi)
    drawn = np.random.default_rng(3).multinomial(n, shares, size=5000)[:, :2]
    tables, times = np.unique(drawn, axis=0, return_counts=True)
    ends = [tango_interval(int(lost), int(won), n, ALPHA) for lost, won in tables]
    covered = sum(
        count for (low, high), count in zip(ends, times, strict=True) if low <= truth <= high
    )
    assert covered / 5000 == pytest.approx(1 - 2 * ALPHA, abs=0.015)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_kind_of_suite_keeps_its_level(case: Case) -> None:
    """A smoke run of what the benchmark draws by the thousand: small suites, alarms beyond chance."""
    small = replace(case, sizes=case.sizes[:2])
    assert exceeded(list(case_levels(np.random.default_rng(11), 60, [small]))) == []


@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("windows, 1 in 20 damaged", 8),
        ("windows, 1 in 20 damaged", 30),
        ("scores +.01, 2% collapse", 200),
        ("one topic in 20 collapses", 30),
    ],
)
def test_t_tests_do_not(name: str, n: int) -> None:
    """What decided before, and that the run above can fail."""
    (case,) = [replace(case, sizes=(n,)) for case in CASES if case.name == name]
    assert exceeded(list(case_levels(np.random.default_rng(12), 60, [case], decided_by=1)))


def clustered(random: np.random.Generator, families: int, members: int) -> np.ndarray:
    """Differences of mean 0 whose families share half of their variance."""
    shared = random.normal(size=(families, 1)).repeat(members, axis=1)
    return (shared + random.normal(size=(families, members))).ravel()


def test_families_of_items_keep_the_level_only_as_clusters() -> None:
    random, labels = np.random.default_rng(4), np.arange(40).repeat(10).tolist()
    draws = [clustered(random, 40, 10).tolist() for _ in range(1000)]
    honest = np.mean([paired_t_noninferiority(d, 0.0, labels).p <= ALPHA for d in draws])
    naive = np.mean([paired_t_noninferiority(d, 0.0).p <= ALPHA for d in draws])
    assert honest == pytest.approx(ALPHA, abs=0.02)
    assert naive > 0.15


def test_repeated_samples_keep_the_level_only_as_means() -> None:
    random, items = np.random.default_rng(5), np.arange(50).repeat(8).tolist()
    draws = [clustered(random, 50, 8).tolist() for _ in range(1000)]
    means = [list(item_means(d, items).values()) for d in draws]
    honest = np.mean([paired_t_noninferiority(d, 0.0).p <= ALPHA for d in means])
    assert honest == pytest.approx(ALPHA, abs=0.02)
    assert np.mean([paired_t_noninferiority(d, 0.0).p <= ALPHA for d in draws]) > 0.15


def test_the_exact_bound_is_never_too_low() -> None:
    n, rate = 80, 0.03
    failures = np.random.default_rng(6).binomial(n, rate, size=TABLES)
    values, times = np.unique(failures, return_counts=True)
    wrong = sum(
        count
        for k, count in zip(values, times, strict=True)
        if exact_interval(int(k), n, ALPHA)[1] < rate
    )
    assert wrong / TABLES <= ALPHA + NOISE


def test_alarms_over_ten_suites_are_false_as_often_as_alpha_says() -> None:
    """Uncorrected, 1 - .95^10 = 40% of campaigns without any change would raise one."""
    p_values = np.random.default_rng(7).random((4000, 10))
    alarms = np.mean([min(holm(row)) <= ALPHA for row in p_values.tolist()])
    assert alarms == pytest.approx(1 - (1 - ALPHA / 10) ** 10, abs=0.012)
    assert np.mean(p_values.min(axis=1) <= ALPHA) == pytest.approx(0.40, abs=0.03)


def test_mcnemar_is_never_too_eager() -> None:
    changed = np.random.default_rng(8).binomial(60, 0.5, size=TABLES)
    false = np.mean([mcnemar_exact(int(lost), 60 - int(lost)) <= ALPHA for lost in changed])
    assert false <= ALPHA + NOISE


def test_shared_alpha_bounds_a_campaign_at_the_margin() -> None:
    """Twenty decisions on candidates that sit at the margin; any false acceptance counts."""
    n, psi, margin, looks = 1000, 0.2, 0.05, 20
    shares = ((psi + margin) / 2, (psi - margin) / 2, 1 - psi)
    drawn = np.random.default_rng(9).multinomial(n, shares, size=(2000, looks))[..., :2]
    tables, inverse = np.unique(drawn.reshape(-1, 2), axis=0, return_inverse=True)
    z = np.array([tango_noninferiority(int(b), int(c), n, margin).z for b, c in tables])[inverse]
    largest = z.reshape(2000, looks).max(axis=1)
    assert np.mean(largest >= normal_quantile(1 - ALPHA / looks)) <= ALPHA + 0.015
    assert np.mean(largest >= normal_quantile(1 - ALPHA)) > 0.5


def test_the_benchmark_prints_its_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gate", "--quick"])
    monkeypatch.setattr("benchmarks.gate.prepare", lambda: None)
    importlib.import_module("benchmarks.gate").main()
    shown = capsys.readouterr().out
    assert "False acceptance at the margin" in shown
    assert "no significant drop" in shown
    assert "one topic in 20 collapses" in shown

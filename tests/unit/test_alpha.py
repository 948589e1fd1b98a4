"""How alpha is spread over decisions, of campaigns that end and of those that do not."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.config import GateConfig
from align.gate.alpha import alpha_at, alpha_spent, spending_sentence, spent_by

ROUNDS = st.integers(1, 30)
LOOKS = st.integers(1, 2000)


def test_alpha_is_spread_evenly_over_the_declared_rounds() -> None:
    assert [alpha_at(0.05, 10, look) for look in (1, 10)] == [0.005, 0.005]
    assert alpha_at(0.05, 10, 12, "campaign") == alpha_at(0.05, 10, 12) == pytest.approx(0.05 / 12)
    with pytest.raises(ValueError, match="at least one round"):
        alpha_at(0.05, 0, 1)


def test_alpha_is_used_up_by_the_declared_rounds_and_exceeded_after_them() -> None:
    assert alpha_spent(0.05, 10, 0) == 0.0
    assert alpha_spent(0.05, 10, 4) == pytest.approx(0.02)
    assert alpha_spent(0.05, 10, 10) == pytest.approx(0.05)
    assert alpha_spent(0.05, 10, 12) == pytest.approx(0.05 + 0.05 / 11 + 0.05 / 12)


def test_three_hundred_nights_overspend_a_campaign_of_ten_rounds_fourfold() -> None:
    spent = alpha_spent(0.05, 10, 300)
    assert 4.3 < spent / 0.05 < 4.4
    assert spent / 0.05 - 1 == pytest.approx(math.log(300 / 10), abs=0.06)
    assert alpha_at(0.05, 10, 300) < alpha_at(0.05, 10, 300, "window") / 29


@given(ROUNDS, LOOKS)
def test_any_window_keeps_alpha_at_a_constant_price(rounds: int, look: int) -> None:
    assert alpha_at(0.05, rounds, look, "window") == alpha_at(0.05, rounds, 1, "window")
    spent = alpha_spent(0.05, rounds, look, "window")
    assert spent <= 0.05 * (1 + 1e-12)
    assert spent == pytest.approx(0.05 * min(look, rounds) / rounds)


@given(ROUNDS, LOOKS)
def test_forever_never_spends_all_of_alpha(rounds: int, looks: int) -> None:
    spent = alpha_spent(0.05, rounds, looks, "forever")
    assert spent < 0.05
    # The sum telescopes: half of alpha over the declared rounds, and of the rest all but T / t.
    if looks > rounds:
        assert spent == pytest.approx(0.05 * (1 - rounds / (2 * looks)))


@given(ROUNDS, LOOKS)
def test_a_later_decision_is_never_laxer(rounds: int, look: int) -> None:
    for spending in ("campaign", "window", "forever"):
        here, next_one = (alpha_at(0.05, rounds, t, spending) for t in (look, look + 1))  # type: ignore[arg-type]
        assert next_one <= here


def test_rounds_without_end_spend_by_the_window_unless_the_file_says_how() -> None:
    assert spent_by(GateConfig(), endless=True).spending == "window"
    assert spent_by(GateConfig(), endless=False) == GateConfig()
    stated = GateConfig(spending="forever")
    assert spent_by(stated, endless=True) == stated


def test_a_sentence_says_what_the_next_decision_is_taken_at() -> None:
    told = {
        s: spending_sentence(GateConfig(spending=s), 20) for s in ("campaign", "window", "forever")
    }  # type: ignore[arg-type]
    assert told == {
        "campaign": "alpha 0.05 over 20 decisions: 0.0025 each",
        "window": "alpha 0.05 over any 10 decisions in a row: 0.005 each, without end",
        "forever": "alpha 0.05 over all there will ever be: 0.000658 for number 20",
    }

"""Spread of alpha over decisions, of campaigns that end and of those that do not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.config.campaign import GateConfig
from align.config.gate import Spending
from align.gate.statistics.alpha import (
    Decision,
    alpha_at,
    alpha_spent,
    amended_level,
    recycled_level,
    spending_sentence,
    spent_by,
)

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
    early = GateConfig(stopping="sequential")
    assert spent_by(early, endless=False).spending == "recycle"
    assert spent_by(early, endless=True).spending == "window"
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


# settings that were amended after decisions


def test_what_was_spent_stays_spent_when_more_rounds_are_declared() -> None:
    # 4 declared at .08: .02 each. After two of them .04 is left, for eight: .005 each.
    gate = GateConfig(alpha=0.08, campaign_rounds=10)
    spent = [0.02, 0.02]
    for look in range(3, 11):
        level = amended_level(gate, spent, look)
        assert level == pytest.approx(0.005)
        spent.append(level)
    assert sum(spent) == pytest.approx(0.08)


def test_fewer_declared_rounds_give_no_decision_more_than_the_rule() -> None:
    # 10 declared at .1: .01 each. The rest of .08 over two would be .04, and the rule for 4 says .025.
    gate = GateConfig(alpha=0.1, campaign_rounds=4)
    assert amended_level(gate, [0.01, 0.01], 3) == pytest.approx(0.025)


def test_a_larger_alpha_is_shared_without_what_was_spent() -> None:
    gate = GateConfig(alpha=0.1, campaign_rounds=4)
    assert amended_level(gate, [0.0125, 0.0125], 3) == pytest.approx(0.025)
    assert amended_level(gate, [0.04, 0.04], 3) == pytest.approx(0.01)


def test_where_nothing_is_left_no_decision_gets_more_than_one_that_was_not_declared() -> None:
    gate = GateConfig(alpha=0.08, campaign_rounds=10)
    assert amended_level(gate, [0.02] * 4, 5) <= alpha_at(0.08, 4, 5)


@given(
    st.sampled_from(["campaign", "forever"]),
    st.integers(1, 8),
    st.integers(1, 30),
    st.floats(0.01, 0.2),
)
def test_amended_campaigns_keep_alpha(
    spending: Spending, first: int, declared: int, alpha: float
) -> None:
    before = [alpha_at(0.05, 8, look, spending) for look in range(1, first + 1)]
    gate = GateConfig(alpha=alpha, campaign_rounds=declared, spending=spending)
    spent = list(before)
    last = declared if spending == "campaign" else declared + 40
    for look in range(first + 1, last + 1):
        if sum(spent) >= alpha:
            return
        spent.append(amended_level(gate, spent, look))
        assert spent[-1] <= alpha_at(alpha, declared, max(look, declared), spending)
    assert sum(spent) <= max(alpha, sum(before)) * (1 + 1e-9)


def test_a_window_counts_what_the_decisions_in_it_took() -> None:
    gate = GateConfig(alpha=0.08, campaign_rounds=4, spending="window")
    # Three decisions at .022 are in the window: .014 is left, where the rule says .02.
    assert amended_level(gate, [0.05, 0.022, 0.022, 0.022], 5) == pytest.approx(0.014)
    assert amended_level(gate, [0.05, 0.01, 0.01, 0.01], 5) == pytest.approx(0.02)


# alpha that acceptances pass on


def levels(gate: GateConfig, outcomes: Sequence[bool]) -> list[float]:
    """Return the levels of decisions with these outcomes, and of the one that follows."""
    decisions: list[Decision] = []
    for accepted in outcomes:
        decisions.append(recycled_level(gate, decisions)._replace(accepted=accepted))
    return [decision.level for decision in (*decisions, recycled_level(gate, decisions))]


@pytest.mark.parametrize(
    ("outcomes", "wanted"),
    [
        ([], [0.02]),
        ([True, True, True], [0.02, 0.04, 0.06, 0.08]),
        ([False, False, False], [0.02, 0.02, 0.02, 0.02]),
        ([True, False, True], [0.02, 0.04, 0.02, 0.04]),
        ([True, True, True, True], [0.02, 0.04, 0.06, 0.08, 0.08]),  # passed on, undeclared or not
        ([True, True, True, False], [0.02, 0.04, 0.06, 0.08, 0.016]),  # nothing left: alpha / 5
    ],
)
def test_an_acceptance_passes_its_level_on(outcomes: list[bool], wanted: list[float]) -> None:
    gate = GateConfig(alpha=0.08, campaign_rounds=4)
    assert levels(gate, outcomes) == pytest.approx(wanted)


def chance_of_an_error(
    gate: GateConfig, losing: Sequence[bool], power: float, past: tuple[Decision, ...] = ()
) -> float:
    """Return the exact chance to accept a losing candidate, where each passes with its decision's level."""
    if len(past) == len(losing):
        return 0.0
    decision = recycled_level(gate, past)
    follow = [
        chance_of_an_error(gate, losing, power, (*past, decision._replace(accepted=accepted)))
        for accepted in (True, False)
    ]
    if losing[len(past)]:
        return decision.level + (1.0 - decision.level) * follow[1]
    return power * follow[0] + (1.0 - power) * follow[1]


@given(
    st.lists(st.booleans(), min_size=1, max_size=7),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.floats(0.01, 0.4),
)
def test_whatever_the_candidates_are_alpha_is_kept_over_all_decisions(
    losing: list[bool], power: float, alpha: float
) -> None:
    gate = GateConfig(alpha=alpha, campaign_rounds=len(losing))
    assert chance_of_an_error(gate, losing, power) <= alpha * (1 + 1e-9)


def test_alpha_is_used_up_where_every_other_candidate_passes() -> None:
    """Nine equal candidates that pass leave all of alpha to the tenth."""
    gate = GateConfig(alpha=0.05, campaign_rounds=10)
    assert chance_of_an_error(gate, [False] * 9 + [True], 1.0) == pytest.approx(0.05)


def test_amended_settings_share_what_rejections_left() -> None:
    """.08 over 4: .02 spent, then .02 accepted. With 6 declared .04 is left for four, and .02 passes on."""
    decisions = [Decision(0.02, False), Decision(0.02, True)]
    more = recycled_level(GateConfig(alpha=0.08, campaign_rounds=6), decisions)
    assert (more.level, more.own) == pytest.approx((0.03, 0.01))
    less = recycled_level(GateConfig(alpha=0.03, campaign_rounds=6), decisions)
    assert less.level == pytest.approx(0.01)


def test_a_sentence_says_that_alpha_passes_on() -> None:
    gate = GateConfig(spending="recycle", campaign_rounds=4, alpha=0.08)
    assert spending_sentence(gate, 3, 0.06) == (
        "alpha 0.08 over 4 decisions: 0.06 for number 3; what one that accepts was allowed passes on to "
        "the next"
    )

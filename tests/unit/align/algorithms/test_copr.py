"""COPR's ranks, targets and fit by hand, and what must not matter."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log
from typing import Any

import pytest
import torch

from align.algorithms import algorithm_from
from align.algorithms.preference.copr import COPR, ranked
from align.algorithms.rows import Row, Totals, units_of
from align.learner.batching import to_tensors
from tests.unit.align.algorithms.test_pairs import group
from tests.unit.align.algorithms.test_ppo import outputs_of
from tests.unit.tiny import row


def answer(length: int, rank: float | None, reference: float, unit: int = 0) -> Row:
    """A row of so many tokens, each with this log-probability under the reference."""
    plain = row((1,), tuple(range(2, 2 + length)), rank)
    return replace(
        plain,
        unit=None if rank is None else unit,
        reference_logprobs_T=None if rank is None else (reference,) * length,
    )


def shares(*logits: float) -> list[float]:
    total = log(sum(exp(value) for value in logits))
    return [value - total for value in logits]


def measured(algorithm: COPR, rows: list[Row], *logprobs: float) -> tuple[float, dict[str, Any]]:
    """Loss and metrics where each row's tokens have this log-probability under the policy."""
    micro = to_tensors(rows)
    flat = [value for r, value in zip(rows, logprobs, strict=True) for _ in r.completion_ids]
    logprobs_N = torch.tensor(flat, requires_grad=True)
    units = len(units_of([r for r in rows if r.advantage is not None]))
    loss, metrics = algorithm.objective(
        micro, outputs_of(micro, logprobs_N, logprobs_N), Totals(tokens=9, sequences=5, units=units)
    )
    return float(loss.detach()), {name: float(value) for name, value in metrics.items()}


def test_a_pair_by_hand() -> None:
    """Two answers: r is 1/3, so with beta .5 the target's log-odds are the reference's plus 4/3."""
    rows = [answer(2, 1.0, -0.75), answer(1, -1.0, -1.0)]
    loss, metrics = measured(COPR(beta=0.5), rows, -0.5, -2.0)
    own, target = shares(-1.0, -2.0), shares(-1.5 + 2 / 3, -1.0 - 2 / 3)
    assert loss == pytest.approx(
        sum((p - t) ** 2 for p, t in zip(own, target, strict=True)) / 2, rel=1e-5
    )
    assert metrics["candidates/best_share"] == pytest.approx(exp(own[0]))


def test_three_answers_and_a_pair_are_a_mean_over_prompts() -> None:
    """Of three answers r is 1/2; a reward of one's own replaces both."""
    rows = [
        answer(1, 1.0, -1.0), answer(1, 0.0, -2.0), answer(2, -1.0, -0.5),
        answer(1, 1.0, -1.0, unit=1), answer(3, -1.0, -1.0, unit=1),
        answer(2, None, 0.0),
    ]  # fmt: skip
    policy = (-1.5, -1.0, -1.0, -2.0, -1.0, -9.0)
    sums, reference = (-1.5, -1.0, -2.0), (-1.0, -2.0, -1.0)
    for reward, (three, two) in ((None, (1 / 2, 1 / 3)), (0.2, (0.2, 0.2))):
        target = shares(*(b + three * a for b, a in zip(reference, (1, 0, -1), strict=True)))
        first = sum((p - t) ** 2 for p, t in zip(shares(*sums), target, strict=True)) / 3
        pair = zip(shares(-2.0, -3.0), shares(-1.0 + two, -3.0 - two), strict=True)
        second = sum((p - t) ** 2 for p, t in pair) / 2
        loss, _ = measured(COPR(beta=1.0, reward=reward), rows, *policy)
        assert loss == pytest.approx((first + second) / 2, rel=1e-5)


def test_a_policy_with_the_optimal_shares_has_no_loss() -> None:
    """The optimal policy's normaliser over all answers, 0.7 nats here, cancels."""
    rows = [answer(1, 1.0, -1.0), answer(1, -1.0, -2.0)]
    loss, _ = measured(COPR(beta=0.5), rows, -1.0 + 2 / 3 - 0.7, -2.0 - 2 / 3 - 0.7)
    assert loss == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((0.0, 3.0, 1.0), {0: -1.0, 1: 1.0, 2: 0.0}),
        ((0.5, 1.0, 0.5, 0.0), {0: 0.0, 1: 1.0, 2: 0.0, 3: -1.0}),
        ((1.0, 0.0, 0.0), {0: 1.0, 1: -0.5, 2: -0.5}),
        ((1.0, None, 0.0), {0: 1.0, 2: -1.0}),
        ((1.0, 1.0, 1.0), {}),
        ((None, 1.0), {}),
    ],
)
def test_ranks_by_hand(scores: tuple[float | None, ...], expected: dict[int, float]) -> None:
    """The ranks of J answers are (2 j - J - 1) / (J - 1), and ties share the mean of theirs."""
    assert ranked(group(*scores)) == pytest.approx(expected)


def test_a_repeated_answer_is_one_candidate() -> None:
    scored = group(1.0, 0.0, 0.5)
    first, second, _ = scored.group.completions_G
    again = replace(scored.group, completions_G=(first, second, first))
    assert ranked(replace(scored, group=again)) == {0: 1.0, 1: -1.0}


def test_rows_of_scored_groups() -> None:
    """A group is one unit, whatever its size; completions of past prompts are held by KL, too."""
    groups = [group(1.0, 0.5, 0.0), group(0.5, 0.5), group(0.0, None, 1.0, source="past")]
    batch = COPR().rows(groups)
    units = [[(r.source, r.advantage) for r in unit] for unit in units_of(batch.rows)]
    assert units == [
        [("new", 1.0), ("new", 0.0), ("new", -1.0)],
        [("past", -1.0), ("past", 1.0)],
        [("past", None)],
    ]
    assert batch.metrics == {"candidates/sets": 2.0, "candidates/ties": 1.0}


@pytest.mark.parametrize("wrong", [{"choose": "all"}, {"margin": 0.1}, {"beta": 0.0}])
def test_settings_of_pairs_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        algorithm_from({"name": "copr", **wrong})

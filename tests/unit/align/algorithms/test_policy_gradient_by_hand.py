"""Each policy-gradient algorithm's own formula, in numbers worked by hand."""

from __future__ import annotations

from dataclasses import replace
from math import exp

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.algorithms import GRPO, PolicyInputs
from align.algorithms.policy_gradient.advantages import (
    batch_normalised,
    group_relative,
    leave_one_out,
)
from align.algorithms.policy_gradient.cispo import CISPO
from align.algorithms.policy_gradient.clipping import by_sequence
from align.algorithms.policy_gradient.dapo import DAPO, overlong_punishment
from align.algorithms.policy_gradient.dr_grpo import DrGRPO
from align.algorithms.policy_gradient.gspo import GSPO
from align.algorithms.policy_gradient.reinforce_pp import ReinforcePP
from align.algorithms.policy_gradient.rloo import RLOO
from align.algorithms.rows import Totals
from tests.unit.align.algorithms.test_policy_gradient import MAX_TOKENS, scored


def flat(log_ratios: list[list[float]], advantages: list[float]) -> PolicyInputs:
    """Completions by their tokens' log ratios; every token starts at -1."""
    ratios_N = torch.tensor([value for row_T in log_ratios for value in row_T])
    rows = [b for b, row_T in enumerate(log_ratios) for _ in row_T]
    return PolicyInputs(
        logprobs_N=(ratios_N - 1.0).requires_grad_(),
        start_logprobs_N=torch.full_like(ratios_N, -1.0),
        advantages_N=torch.tensor([advantages[b] for b in rows]),
        rows_N=torch.tensor(rows),
    )


def totals_of(inputs: PolicyInputs) -> Totals:
    sequences = len(inputs.rows_N.unique())
    return Totals(tokens=len(inputs.rows_N), sequences=sequences, units=sequences)


def test_dr_grpo_by_hand() -> None:
    # One good token and three bad ones, two completions of at most four: -(1 - 3) / (2 * 4).
    inputs = flat([[0.0], [0.0, 0.0, 0.0]], [1.0, -1.0])
    loss, _ = DrGRPO(length=4).loss(inputs, totals_of(inputs))
    assert loss.item() == pytest.approx(0.25)
    assert DrGRPO().for_round(4) == DrGRPO(length=4)
    assert DrGRPO(length=4).for_round(64).length == 4
    with pytest.raises(ValueError, match="for_round"):
        DrGRPO().loss(inputs, totals_of(inputs))


def test_dr_grpo_scales_nothing() -> None:
    assert DrGRPO().advantages([scored([1.0, 0.0, 0.5])]) == [[0.5, -0.5, 0.0]]
    with pytest.raises(ValueError, match="scale"):
        DrGRPO(scale="group")  # type: ignore[arg-type]


def test_gspo_by_hand() -> None:
    """Mean log ratio 0.2: clipped at 1.2 where it is rewarded, and not where it is punished."""
    good, bad = flat([[0.1, 0.3]], [1.0]), flat([[0.1, 0.3]], [-1.0])
    algorithm = GSPO(clip_low=0.2, clip_high=0.2)
    loss, metrics = algorithm.loss(good, totals_of(good))
    assert loss.item() == pytest.approx(-1.2)
    assert float(metrics["loss/clip_share"]) == 1.0
    loss.backward()
    assert good.logprobs_N.grad is not None and (good.logprobs_N.grad == 0.0).all()
    loss, _ = algorithm.loss(bad, totals_of(bad))
    loss.backward()
    assert loss.item() == pytest.approx(exp(0.2))
    assert bad.logprobs_N.grad is not None
    assert bad.logprobs_N.grad.tolist() == pytest.approx([exp(0.2) / 2] * 2)


def test_rloo_by_hand() -> None:
    """Log ratios add up to 0.15, and every token has the whole sequence's gradient."""
    inputs = flat([[0.1, 0.05], [0.0]], [2.0, -1.0])
    loss, _ = RLOO().loss(inputs, totals_of(inputs))
    loss.backward()
    assert loss.item() == pytest.approx((-2 * exp(0.15) + 1) / 2)
    assert inputs.logprobs_N.grad is not None
    assert inputs.logprobs_N.grad.tolist() == pytest.approx([-exp(0.15)] * 2 + [0.5])


def test_cispo_by_hand() -> None:
    """Ratios e, 1 and 1/e under a cap of 2; GRPO would drop the first token's gradient."""
    inputs = flat([[1.0, 0.0, -1.0]], [3.0])
    loss, metrics = CISPO(cap=2.0).loss(inputs, totals_of(inputs))
    loss.backward()
    # Logprobs are 0, -1 and -2.
    assert loss.item() == pytest.approx(-(2 * 0 + 1 * -1 + exp(-1) * -2))
    assert inputs.logprobs_N.grad is not None
    assert inputs.logprobs_N.grad.tolist() == pytest.approx([-2.0, -1.0, -exp(-1)])
    assert float(metrics["loss/clip_share"]) == pytest.approx(1 / 3)


def test_clip_higher_lets_a_rare_token_rise_further() -> None:
    inputs = flat([[0.22]], [1.0])
    losses = [kind.loss(inputs, totals_of(inputs))[0] for kind in (GRPO(), DAPO())]
    assert [loss.item() for loss in losses] == pytest.approx([-1.2, -exp(0.22)])


def test_a_sequence_is_one_entry_of_mean_weight() -> None:
    inputs = replace(
        flat([[0.1, 0.3], [-0.5]], [1.0, -2.0]),
        rows_N=torch.tensor([1, 1, 4]),
        weights_N=torch.tensor([0.5, 1.5, 2.0]),
    )
    summed, mean = by_sequence(inputs, mean=False), by_sequence(inputs, mean=True)
    assert summed.logprobs_N.tolist() == pytest.approx([0.4, -0.5])
    assert mean.logprobs_N.tolist() == pytest.approx([0.2, -0.5])
    assert mean.advantages_N.tolist() == [1.0, -2.0]
    assert mean.rows_N.tolist() == [1, 4]
    assert mean.weights_N is not None and mean.weights_N.tolist() == [1.0, 2.0]


def test_leave_one_out_by_hand() -> None:
    # 1 - (0 + .5) / 2, 0 - (1 + .5) / 2, .5 - (1 + 0) / 2
    assert RLOO().advantages([scored([1.0, 0.0, None, 0.5])]) == [[0.75, -0.75, None, 0.0]]
    assert leave_one_out([[1.0, None], [2.0, 2.0]]) == [[None, None], [0.0, 0.0]]


@given(st.lists(st.lists(st.integers(-8, 8), min_size=2, max_size=6), min_size=1, max_size=4))
def test_leave_one_out_is_its_definition(rewards_PG: list[list[float]]) -> None:
    for rewards_G, advantages_G in zip(rewards_PG, leave_one_out(rewards_PG), strict=True):
        others = [sum(rewards_G) - r for r in rewards_G]
        expected = [
            r - other / (len(rewards_G) - 1) for r, other in zip(rewards_G, others, strict=True)
        ]
        assert advantages_G == pytest.approx(expected)


def test_reinforce_pp_by_hand() -> None:
    # Mean 1.5, squares 2.25 + .25 + .25 + 2.25 over 3: std 1.290994.
    groups = [scored([3.0, 2.0]), scored([1.0, 0.0]), scored([None])]
    found = ReinforcePP().advantages(groups)
    assert found[0] == pytest.approx([1.161895, 0.387298], abs=1e-6)
    assert found[1:] == [pytest.approx([-0.387298, -1.161895], abs=1e-6), [None]]
    # Both groups centred to (.5, -.5): squares 4 * .25 over 3, std .577350.
    based = ReinforcePP(group_baseline=True).advantages(groups)
    assert based[0] == based[1] == pytest.approx([0.866025, -0.866025], abs=1e-6)
    assert based[2] == [None]


def test_reinforce_pp_without_spread_or_company() -> None:
    assert batch_normalised([[1.0], [1.0]], group_mean=False) == [[0.0], [0.0]]
    assert batch_normalised([[1.0]], group_mean=False) == [[None]]
    # Noise of .001 is divided by the floor of .1, not blown up to 1.
    assert batch_normalised([[0.001, 0.0]], group_mean=True)[0] == pytest.approx([0.005, -0.005])


def test_overlong_punishment_by_hand() -> None:
    # The paper's own numbers: 16,384 tokens expected, 4,096 more tolerated.
    lengths = [0, 16_384, 17_408, 18_432, 20_480, 30_000]
    found = [overlong_punishment(length, 20_480, 4_096) for length in lengths]
    assert found == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    assert DAPO().overlong_buffer * 20_480 == 4_096


def test_dapo_takes_the_punishment_off_the_reward() -> None:
    """Ten tokens allowed, the last five punished: 8 tokens cost 0.6 of 2."""
    algorithm = DAPO(scale="none", overlong_penalty=2.0, overlong_buffer=0.5).for_round(10)
    group = scored([1.0, 1.0, None], lengths=(5, 8, 9))
    assert algorithm.advantages([group])[0][:2] == pytest.approx([0.6, -0.6])
    assert algorithm.advantages([group])[0][2] is None
    (by_part,) = algorithm.model_copy(update={"by_part": True}).advantages([group])
    assert by_part[:2] == pytest.approx([0.6, -0.6]), "one more part, with its own weight"
    plain = DAPO(overlong_penalty=0.0)
    assert plain.advantages([group]) == group_relative([[1.0, 1.0, None]], "group")
    assert algorithm.for_round(99).max_tokens == 10
    with pytest.raises(ValueError, match="for_round"):
        DAPO().advantages([group])


def test_dapo_leaves_cut_completions_out_of_the_loss_and_in_the_mean() -> None:
    algorithm = DAPO(scale="none", overlong_penalty=0.0, filter_truncated=True)
    group = scored([1.0, 0.0, 0.5], lengths=(2, 4, 4), cut=(1,))
    assert algorithm.advantages([group]) == [[0.5, None, 0.0]]


def test_dapo_draws_again_where_rewards_do_not_differ() -> None:
    algorithm = DAPO().for_round(MAX_TOKENS)
    assert algorithm.resamples == 3 and GRPO().resamples == 0
    assert algorithm.informative(scored([1.0, 0.0]))
    assert not algorithm.informative(scored([0.1, 0.1, 0.1]))
    assert not algorithm.informative(scored([1.0, None]))
    alike = scored([1.0, 1.0], lengths=(2, MAX_TOKENS))
    assert not algorithm.informative(alike), "length alone says nothing about the task"
    assert GRPO().informative(scored([1.0, 1.0]))

"""PPO's rows, their advantages and its two losses, by hand and against GRPO's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from align.algorithms import GRPO, algorithm_from
from align.algorithms.base import PolicyInputs
from align.algorithms.micro_batch import MicroBatch
from align.algorithms.outputs import Outputs
from align.algorithms.policy_gradient.actor_critic.ppo import PPO, CriticConfig, clipped_value_loss
from align.algorithms.rows import Batch, Row, Totals
from align.learner.batching import to_tensors
from rollouts.types import Completion, FinishReason, Prompt, RolloutGroup, Score, ScoredGroup
from tests.unit.tiny import VOCABULARY, row


def group(*scores: float | None, ends: FinishReason = "stop") -> ScoredGroup:
    return ScoredGroup(
        group=RolloutGroup(
            prompt=Prompt(id="p", text="p"),
            prompt_ids=(1, 2),
            policy="first/0",
            seed=0,
            completions_G=tuple(
                Completion(
                    token_ids=(3,) * (i + 1),
                    logprobs_T=(-1.0,) * (i + 1),
                    text="",
                    finish_reason=ends,
                )
                for i in range(len(scores))
            ),
        ),
        scores_G=tuple(Score(value=s, status="failed" if s is None else "scored") for s in scores),
    )


def outputs_of(micro: MicroBatch, logprobs_N: torch.Tensor, values_N: torch.Tensor) -> Outputs:
    """A model that gives exactly these logprobs and values at the completion tokens."""
    found = Outputs(
        hidden_ND=logprobs_N[:, None],
        head=torch.nn.Identity(),
        targets_N=micro.targets_N,
        temperature=1.0,
        dtype=torch.float32,
        vocabulary=VOCABULARY,
        values_N=values_N,
    )
    found.__dict__["_tokens"] = (logprobs_N, torch.zeros_like(logprobs_N))
    return found


def completed(algorithm: PPO, *rows: tuple[Row, tuple[float, ...]]) -> list[Row]:
    return list(algorithm.complete([replace(r, values_T=values_T) for r, values_T in rows]))


def test_every_scored_completion_is_a_row_whatever_the_group_size() -> None:
    rows = PPO().rows([group(2.0), group(None, 1.0)]).rows
    assert [r.advantage for r in rows] == [2.0, None, 1.0]
    PPO().check(group_size=1, where="rounds.0")


def test_an_answer_that_was_cut_pays() -> None:
    algorithm = PPO(truncation_penalty=0.5)
    cut, ended = algorithm.rows([group(2.0, ends="length"), group(2.0)]).rows
    assert (cut.advantage, ended.advantage) == (1.5, 2.0)


def test_completing_by_hand() -> None:
    """gamma .9, lam .5 as in test_gae; returns stay those before whitening, values the critic's."""
    algorithm = PPO(gamma=0.9, lam=0.5, whiten=False)
    held = row((7,), (8, 9), None, "general")
    taught, kept = completed(
        algorithm, (held, (9.0, 9.0)), (row((1,), (2, 3, 4), 1.0), (0.5, 0.4, 0.2))
    )
    assert taught.advantages_T == pytest.approx((-0.077, 0.14, 0.8))
    assert taught.returns_T == pytest.approx((0.423, 0.54, 1.0))
    assert taught.values_T == (0.5, 0.4, 0.2)
    assert kept.advantages_T is None and kept.source == "general"

    white, _ = completed(
        PPO(gamma=0.9, lam=0.5),
        (held, (9.0, 9.0)),
        (row((1,), (2, 3, 4), 1.0), (0.5, 0.4, 0.2)),
    )
    assert white.returns_T == taught.returns_T
    # mean .287667, unbiased standard deviation .456767
    assert white.advantages_T == pytest.approx((-0.798364, -0.323286, 1.121651), abs=1e-5)


def test_whitening_is_over_all_tokens_of_the_batch() -> None:
    first, second = completed(
        PPO(lam=1.0), (row((1,), (2, 3), 1.0), (0.0, 0.0)), (row((1,), (2, 3), 3.0), (0.0, 0.0))
    )
    # 1, 1, 3, 3: mean 2, squares 4 over 3
    assert first.advantages_T == pytest.approx((-0.866025, -0.866025), abs=1e-5)
    assert second.advantages_T == pytest.approx((0.866025, 0.866025), abs=1e-5)


def test_the_policy_loss_is_grpos_surrogate() -> None:
    start_N = torch.linspace(-2.0, -1.0, 6)
    logprobs_N = (start_N + torch.linspace(-0.6, 0.6, 6)).requires_grad_()
    inputs = PolicyInputs(
        logprobs_N=logprobs_N,
        start_logprobs_N=start_N,
        advantages_N=torch.tensor([1.0, -1.0, 0.5, -0.5, 1.0, 2.0]),
        rows_N=torch.tensor([0, 0, 1, 1, 2, 2]),
    )
    totals = Totals(tokens=6, sequences=3, units=3)
    found = []
    for algorithm in (PPO(clip_low=0.1, clip_high=0.4), GRPO(clip_low=0.1, clip_high=0.4)):
        loss, metrics = algorithm.loss(inputs, totals)
        (gradient,) = torch.autograd.grad(loss, logprobs_N)
        found.append((loss, gradient, metrics["loss/clip_share"]))
    torch.testing.assert_close(found[0], found[1])
    assert 0.0 < float(found[0][2]) < 1.0


def test_value_clipping_by_hand() -> None:
    """Values started at 0 and may move by .2.

    token 0: return 1, value .1 -> within reach:       error .81, gradient v - R = -.9
    token 1: return 1, value .5 -> held at .2:         error max(.25, .64) = .64, no gradient
    token 2: return 1, value -.5 -> held at -.2:       error max(2.25, 1.44) = 2.25, gradient -1.5
    """
    values_N = torch.tensor([0.1, 0.5, -0.5], requires_grad=True)
    start_N, returns_N = torch.zeros(3), torch.ones(3)
    loss_N, clipped_N = clipped_value_loss(values_N, start_N, returns_N, 0.2)
    assert loss_N.tolist() == pytest.approx([0.405, 0.32, 1.125])
    assert clipped_N.tolist() == [False, True, False]
    (gradient,) = torch.autograd.grad(loss_N.sum(), values_N)
    assert gradient.tolist() == pytest.approx([-0.9, 0.0, -1.5])

    loss_N, clipped_N = clipped_value_loss(values_N, start_N, returns_N, None)
    assert loss_N.tolist() == pytest.approx([0.405, 0.125, 1.125])
    assert not clipped_N.any()


def test_the_objective_by_hand() -> None:
    """On-policy, undiscounted, lam 1, not whitened: advantages are score minus value.

    policy: -(2 - .5 + 2 - 1) / 2 = -1.25; values: .5 (1.5^2 + 1^2) / 2 = .8125, weighted .1
    """
    algorithm = PPO(lam=1.0, whiten=False)
    held = row((7,), (8, 9), None, "general")
    rows = completed(algorithm, (row((1,), (2, 3), 2.0), (0.5, 1.0)), (held, (float("nan"), 5.0)))
    micro = to_tensors(rows)
    logprobs_N = torch.full((4,), -1.0, requires_grad=True)
    values_N = torch.tensor([0.5, 1.0, 0.0, 5.0], requires_grad=True)
    loss, metrics = algorithm.objective(
        micro, outputs_of(micro, logprobs_N, values_N), Batch(rows=tuple(rows)).totals
    )
    assert loss.item() == pytest.approx(-1.25 + 0.1 * 0.8125)
    assert float(metrics["loss/policy"]) == pytest.approx(-1.25)
    assert float(metrics["loss/value"]) == pytest.approx(0.8125)
    loss.backward()
    assert logprobs_N.grad is not None and values_N.grad is not None
    assert logprobs_N.grad.tolist() == pytest.approx([-0.75, -0.5, 0.0, 0.0])
    assert values_N.grad.tolist() == pytest.approx([-0.075, -0.05, 0.0, 0.0])


def test_rows_that_only_hold_give_a_loss_without_gradient() -> None:
    micro = to_tensors([row((7,), (8, 9), None, "general")])
    logprobs_N = torch.zeros(2, requires_grad=True)
    loss, metrics = PPO().objective(
        micro,
        outputs_of(micro, logprobs_N, torch.ones(2)),
        Totals(tokens=5, sequences=1, units=1),
    )
    loss.backward()
    assert loss.item() == 0.0 and not metrics
    assert logprobs_N.grad is not None and not logprobs_N.grad.any()


def test_explained_variance_comes_from_the_summed_parts() -> None:
    sums = {"value/return": 1.0, "value/return_square": 2.0, "value/error_square": 0.25}
    assert PPO().derived(sums) == {"value/explained_variance": 0.75}
    assert PPO().derived({"loss/policy": 0.0}) == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"lam": 1.5},
        {"gamma": 0.0},
        {"value_clip": 0.0},
        {"critic": {"lr": 0.0}},
        {"critic": {"shared_gradient": True}},
        {"critic": {"model": "elsewhere", "shared_gradient": True}},
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        algorithm_from({"name": "ppo", **wrong})


def test_a_campaign_names_it_and_its_critic() -> None:
    short = algorithm_from("ppo")
    assert isinstance(short, PPO) and short.critic_config == CriticConfig()
    long = algorithm_from({"name": "ppo", "critic": {"model": "shared", "shared_gradient": True}})
    assert long.critic_config.model == "shared"
    assert algorithm_from("grpo").critic_config is None

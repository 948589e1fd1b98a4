"""Learning rates over a round, by hand; and every group of parameters under one schedule."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from align.config.campaign import OptimizerConfig
from align.learner.optimizer import (
    SCHEDULES,
    add_group,
    learning_rate,
    make_optimizer,
    set_learning_rates,
)


def rates(num_steps: int = 5, **chosen: Any) -> list[float]:
    optimizer = OptimizerConfig(lr=0.1, **chosen)
    return [learning_rate(optimizer, step, num_steps) for step in range(num_steps)]


def test_every_schedule_that_a_file_may_name_is_here() -> None:
    assert set(get_args(OptimizerConfig.model_fields["schedule"].annotation)) == set(SCHEDULES)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, [0.1] * 5),
        ({"final_lr": 0.2}, [0.1, 0.08, 0.06, 0.04, 0.02]),
        ({"final_lr": 0.2, "decay_from": 0.5}, [0.1, 0.1, 0.1, 0.06, 0.02]),
        # cos(pi/4) = 0.70711: (1 + 0.70711) / 2 = 0.85355 of the way is left after a quarter of it.
        ({"schedule": "cosine", "final_lr": 0.2}, [0.1, 0.088284, 0.06, 0.031716, 0.02]),
        # The fall begins at the third of five steps and is half done at the fourth.
        (
            {"schedule": "cosine", "final_lr": 0.2, "decay_from": 0.5},
            [0.1, 0.1, 0.1, 0.06, 0.02],
        ),
        ({"schedule": "constant"}, [0.1] * 5),
        ({"schedule": "constant", "warmup_steps": 3}, [0.025, 0.05, 0.075, 0.1, 0.1]),
        ({"schedule": "cosine", "final_lr": 0.5, "warmup_steps": 1}, [0.05, 0.092678, 0.075]),
    ],
)
def test_rates_by_hand(chosen: dict[str, Any], expected: list[float]) -> None:
    assert rates(**chosen)[: len(expected)] == pytest.approx(expected, abs=1e-6)


@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    final=st.floats(0.01, 1.0),
    after=st.floats(0.0, 0.9),
    num_steps=st.integers(2, 60),
)
def test_a_rate_falls_from_its_peak_to_its_end(
    name: Any, final: float, after: float, num_steps: int
) -> None:
    final = 1.0 if name == "constant" else final
    found = rates(num_steps, schedule=name, final_lr=final, decay_from=after)
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(0.1)
    assert found[-1] == pytest.approx(0.1 * final)


def test_the_only_step_of_a_round_is_taken_at_the_peak() -> None:
    assert rates(1, schedule="cosine", final_lr=0.1) == [0.1]


def test_a_constant_rate_has_no_end_to_fall_to() -> None:
    with pytest.raises(ValidationError, match=r"never falls to final_lr 0\.5; set final_lr to 1"):
        OptimizerConfig(schedule="constant", final_lr=0.5)


def test_groups_keep_their_own_peaks() -> None:
    policy, critic = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = make_optimizer([policy], OptimizerConfig(lr=0.1))
    add_group(optimizer, [critic], 0.02)
    for share in (0.5, 0.25):
        set_learning_rates(optimizer, share)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx(
            [0.1 * share, 0.02 * share]
        )


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_step_is_one_pass_where_all_weights_lie_on_a_cpu(device: str) -> None:
    weights = [torch.nn.Parameter(torch.zeros(2, device=place)) for place in ("cpu", device)]
    optimizer = make_optimizer(weights, OptimizerConfig(lr=0.1))
    assert bool(optimizer.param_groups[0]["fused"]) is (device == "cpu")


def test_steps_are_adamw_by_the_definition() -> None:
    """Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2; computed here in float64."""
    chosen = OptimizerConfig(lr=0.05, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1)
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    optimizer = make_optimizer([weight], chosen)
    expected = weight.detach().double()
    first, second = torch.zeros(3).double(), torch.zeros(3).double()
    for step in range(1, 5):
        gradient = torch.tensor([0.3, -1.0, 2.0]) / step
        weight.grad = gradient.clone()
        optimizer.step()
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient.double() ** 2
        size = (second / (1 - 0.99**step)).sqrt() + 1e-6
        expected = expected * (1 - 0.05 * 0.1) - 0.05 * first / (1 - 0.9**step) / size
    torch.testing.assert_close(weight.detach().double(), expected, atol=1e-6, rtol=1e-6)

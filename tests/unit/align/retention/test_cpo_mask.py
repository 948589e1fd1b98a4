"""CPO's mask: which weights it draws, to where, and with what gradient."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from align.algorithms.rows import Batch
from align.config.retention.methods import CPOMaskConfig
from align.retention.regularizers.cpo import CPOMask, with_moved
from tests.unit.align.retention.trainings import (
    NEW,
    POLICIES,
    accepted,
    begin,
    learner_of,
    weights_of,
)

NAN = float("nan")


def test_the_gradient_has_one_size_whatever_the_distance() -> None:
    """Two of three weights are drawn: lambda / 2 * (|0.5| + |-2|), gradient lambda / 2 * sign."""
    method: Any = CPOMask(CPOMaskConfig(strength=3.0), SimpleNamespace())  # type: ignore[arg-type]
    method._goals, method._counts = {"w": torch.tensor([1.0, NAN, 1.0])}, {"w": 2}
    weight = torch.tensor([1.5, 7.0, -1.0], requires_grad=True)
    (term,) = method.parameter_penalty({"w": weight})
    term.backward()
    assert float(term.detach()) == pytest.approx(3 / 2 * (0.5 + 2))
    assert weight.grad is not None and weight.grad.tolist() == [1.5, 0.0, -1.5]


def test_the_mask_of_rounds_is_a_union_at_the_newest_values() -> None:
    start = torch.tensor([0.0, 0.0, 0.0, 0.0])
    first = torch.tensor([0.0, -3.0, 1.0, 2.0])
    goal = with_moved(first, start, 0.5)
    torch.testing.assert_close(goal, torch.tensor([NAN, -3.0, NAN, 2.0]), equal_nan=True)
    second = torch.tensor([5.0, -3.1, 1.0, 4.0])
    goal = with_moved(second, first, 0.5, goal)
    torch.testing.assert_close(goal, torch.tensor([5.0, -3.0, NAN, 4.0]), equal_nan=True)
    # A tensor that did not move adds nothing, whatever the share.
    assert with_moved(first, first, 1.0).isnan().all()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_round_draws_its_share_of_every_tensor_that_moved(
    models: dict[str, Path], tmp_path: Path, policy: str
) -> None:
    from safetensors.torch import load_file

    training = begin(learner_of(models, tmp_path, policy), CPOMaskConfig(share=0.1))
    start = weights_of(training)
    training.update(Batch(rows=NEW))
    end = weights_of(training)
    goals = load_file(accepted(training, tmp_path / "kept", "cpo_mask")["cpo_mask"])
    assert goals.keys() == end.keys()
    for name, goal in goals.items():
        drawn = ~goal.isnan()
        moved = (end[name] - start[name]).abs()
        if not moved.any():
            assert not drawn.any()
            continue
        assert 0 < int(drawn.sum()) <= max(1, round(0.1 * goal.numel()))
        assert torch.equal(goal[drawn], end[name][drawn])
        assert moved[drawn].min() >= moved[~drawn].max()

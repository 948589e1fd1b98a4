"""Synaptic intelligence: the path and its importance by hand, and whole trainings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from align.algorithms.rows import Batch
from align.config.retention.methods import L2SPConfig, SIConfig
from align.learner.penalty import WeightStep
from align.retention.regularizers.si import SI
from tests.unit.align.retention.trainings import (
    NEW,
    POLICIES,
    accepted,
    begin,
    learner_of,
    weights_of,
)
from tests.unit.tiny import row


def step(before: list[float], after: list[float]) -> WeightStep:
    return WeightStep(
        before={"w": torch.tensor(before)}, weights={"w": torch.tensor(after)}, momenta={}
    )


def test_the_path_is_the_sum_of_gradient_times_step() -> None:
    """Two steps of three weights: -g * delta is .2 and .05, then -.1 and .05; a weight that rests has 0."""
    method: Any = SI(SIConfig(), SimpleNamespace())  # type: ignore[arg-type]
    method._path = {"w": torch.zeros(3)}
    method.after_backward({"w": torch.tensor([-2.0, 1.0, 5.0])})
    method.after_update(step([0.0, 0.0, 1.0], [0.1, -0.05, 1.0]))
    method.after_backward({"w": torch.tensor([1.0, -0.5, 5.0])})
    method.after_update(step([0.1, -0.05, 1.0], [0.2, 0.05, 1.0]))
    assert method._path["w"].tolist() == pytest.approx([0.2 - 0.1, 0.05 + 0.05, 0.0])


def test_the_penalty_is_the_strength_times_importance_times_squared_distance() -> None:
    method: Any = SI(SIConfig(strength=3.0), SimpleNamespace())  # type: ignore[arg-type]
    method._importance = {"w": torch.tensor([2.0, 0.5])}
    method._centre = {"w": torch.tensor([1.0, 1.0])}
    weight = torch.tensor([1.5, -1.0], requires_grad=True)
    (term,) = method.parameter_penalty({"w": weight})
    term.backward()
    assert float(term.detach()) == pytest.approx(3 * (2 * 0.25 + 0.5 * 4))
    assert weight.grad is not None
    assert weight.grad.tolist() == pytest.approx([2 * 3 * 2 * 0.5, 2 * 3 * 0.5 * -2])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_round_leaves_the_importance_of_its_path(
    models: dict[str, Path], tmp_path: Path, policy: str
) -> None:
    """One step: omega = -g * delta and Omega = max(omega, 0) / (delta^2 + xi), with g from the update."""
    from safetensors.torch import load_file

    training = begin(learner_of(models, tmp_path, policy), SIConfig(xi=0.01))
    start = weights_of(training)
    training.update(Batch(rows=NEW))
    end = weights_of(training)
    gradients = {n: p.grad for n, p in training.learner.policy.named_parameters().items()}
    kept = load_file(accepted(training, tmp_path / "kept", "si")["si"])
    assert kept.keys() == start.keys()
    for name, importance in kept.items():
        delta = end[name] - start[name]
        gradient = gradients[name]
        assert gradient is not None
        expected = (-gradient * delta).clamp(min=0) / (delta.square() + 0.01)
        torch.testing.assert_close(importance, expected)
    assert any(importance.any() for importance in kept.values())


def test_penalties_on_the_weights_are_no_part_of_the_path(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """Far from the base, L2-SP pulls with a gradient of its own, and the path sees the loss alone."""
    learner = learner_of(models, tmp_path, "full")
    still = Batch(rows=(row((1, 2, 3), (4, 5), 0.0),))
    pull = L2SPConfig(alpha=2.0, to="base")
    training = begin(learner, pull, SIConfig(), parent="other")
    assert training.update(still)["retention/l2_sp"] > 0
    (_, method) = [p for p in training.penalties if p.name in ("l2_sp", "si")]
    assert not any(path.any() for path in method.tensors().values())


def test_importance_adds_up_over_rounds(models: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    learner = learner_of(models, tmp_path, "full")
    first = begin(learner, SIConfig())
    first.update(Batch(rows=NEW))
    artifacts = accepted(first, tmp_path / "first", "si")
    # No step in between: the round adds nothing, as one that a repair ended.
    unmoved = accepted(begin(learner, SIConfig(), artifacts=artifacts), tmp_path / "second", "si")
    assert unmoved["si"].read_bytes() == artifacts["si"].read_bytes()
    second = begin(learner, SIConfig(), artifacts=artifacts)
    second.update(Batch(rows=NEW))
    total = load_file(accepted(second, tmp_path / "third", "si")["si"])
    before = load_file(artifacts["si"])
    assert all((total[name] >= before[name]).all() for name in before)
    assert any((total[name] > before[name]).any() for name in before)


def test_a_stronger_penalty_keeps_important_weights_nearer(
    models: dict[str, Path], tmp_path: Path
) -> None:
    learner = learner_of(models, tmp_path, "full")
    first = begin(learner, SIConfig())
    first.update(Batch(rows=NEW))
    artifacts = accepted(first, tmp_path / "first", "si")
    distances = []
    for strength in (1e-6, 1e6):
        training = begin(learner, SIConfig(strength=strength), artifacts=artifacts)
        start = weights_of(training)
        for _ in range(4):
            training.update(Batch(rows=NEW))
        end = weights_of(training)
        distances.append(sum(float((end[n] - start[n]).square().sum()) for n in start))
    assert distances[1] < distances[0]

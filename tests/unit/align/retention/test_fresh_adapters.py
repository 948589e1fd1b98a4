"""Methods that keep the adapters of rounds apart: numbers by hand, and what they leave alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.algorithms.rows import Batch
from align.config.retention.adapters import InfLoRAConfig, NLoRAConfig, OLoRAConfig
from align.errors import SnapshotError
from align.learner.learner import Learner
from align.learner.model.adapter import factor_names
from align.retention.adapters.inflora import INITIAL_LENGTH, free_directions
from align.retention.adapters.n_lora import NLoRA
from align.retention.adapters.o_lora import OLoRA
from tests.unit.align.retention.test_gradient_methods import OTHER, logprobs
from tests.unit.align.retention.trainings import (
    NEW,
    accepted,
    begin,
    learner_of,
    weights_of,
)

VIEW = cast(Any, SimpleNamespace())


@pytest.fixture
def learner(models: dict[str, Path], tmp_path: Path) -> Learner:
    return learner_of(models, tmp_path, "fresh")


def keep(learner: Learner, models: dict[str, Path], folder: Path) -> None:
    """Save the policy as the snapshot ``first``, which the learner may load from then on."""
    learner.save(folder)
    learner._folder_of = {**models, "first": folder}.__getitem__


def rights(learner: Learner) -> list[str]:
    return [a for a, _, _ in factor_names(learner.policy.model)]


def gradients_of(terms: Any, weights: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    total = sum(terms, torch.zeros(()))
    total.backward()  # type: ignore[no-untyped-call]
    return float(total.detach()), {name: cast(Tensor, w.grad) for name, w in weights.items()}


# O-LoRA


def test_shared_directions_cost_the_sum_of_absolute_products() -> None:
    """Rows (1, 2) and (0, -1) on an earlier (3, 1): |5| + |-1|, half of which is 3."""
    method = OLoRA(OLoRAConfig(strength=0.5, l2=0.1), VIEW)
    method._factors = (("a", "b", 2.0),)
    method._earlier = {"a": torch.tensor([[3.0], [1.0]])}
    weights = {
        "a": torch.tensor([[1.0, 2.0], [0.0, -1.0]], requires_grad=True),
        "b": torch.tensor([[3.0], [4.0]], requires_grad=True),
    }
    value, gradients = gradients_of(method.parameter_penalty(weights), weights)
    length = 6**0.5
    assert value == pytest.approx(3.0 + 0.1 * (length + 5.0))
    expected = 0.5 * torch.tensor([[3.0, 1.0], [-3.0, -1.0]]) + 0.1 * weights["a"].detach() / length
    torch.testing.assert_close(gradients["a"], expected)
    torch.testing.assert_close(gradients["b"], torch.tensor([[0.06], [0.08]]))


def test_a_factor_of_zeros_has_a_length_without_a_gradient() -> None:
    """B begins at zero, where the derivative of its length does not exist."""
    method = OLoRA(OLoRAConfig(l2=1.0), VIEW)
    method._factors, method._earlier = (("a", "b", 1.0),), {}
    weights = {name: torch.zeros(2, 2, requires_grad=True) for name in "ab"}
    assert gradients_of(method.parameter_penalty(weights), weights)[0] == 0.0
    assert not any(
        bool(w.grad.any() or w.grad.isnan().any()) for w in weights.values() if w.grad is not None
    )


def test_the_rows_of_all_rounds_are_handed_on(learner: Learner, tmp_path: Path) -> None:
    artifacts: dict[str, Path] = {}
    rows: list[dict[str, Tensor]] = []
    for label in ("first", "second"):
        training = begin(learner, OLoRAConfig(), artifacts=artifacts, seed=len(rows))
        training.update(Batch(rows=NEW))
        rows.append(weights_of(training))
        artifacts = accepted(training, tmp_path / label, "o_lora")
    stored = load_file(artifacts["o_lora"])
    assert sorted(stored) == sorted(rights(learner))
    for name, columns in stored.items():
        torch.testing.assert_close(columns, torch.cat([part[name] for part in rows]).T)


def test_the_penalty_turns_an_adapter_away_from_earlier_ones(
    learner: Learner, tmp_path: Path
) -> None:
    first = begin(learner, OLoRAConfig())
    first.update(Batch(rows=NEW))
    artifacts = accepted(first, tmp_path / "kept", "o_lora")
    stored = load_file(artifacts["o_lora"])
    overlaps = {}
    for strength in (1e-9, 5.0):
        config = OLoRAConfig(strength=strength)
        training = begin(learner, config, artifacts=artifacts, lr=1e-2, seed=8)
        for _ in range(6):
            metrics = training.update(Batch(rows=OTHER))
        weights = weights_of(training)
        overlaps[strength] = sum(float((weights[n] @ c).abs().sum()) for n, c in stored.items())
        assert metrics["retention/o_lora"] > 0.0
    assert overlaps[5.0] < 0.5 * overlaps[1e-9]


def test_a_merged_candidate_hands_on_the_directions_of_its_update(
    learner: Learner, models: dict[str, Path], tmp_path: Path
) -> None:
    """A candidate that a repair made is a whole model: the adapter in the learner is not its own."""
    training = begin(learner, OLoRAConfig(), lr=1e-2)
    for _ in range(3):
        training.update(Batch(rows=NEW))
    own = weights_of(training)
    keep(learner, models, tmp_path / "first")
    training = begin(learner, OLoRAConfig())
    learner.load("first")
    stored = load_file(accepted(training, tmp_path / "kept", "o_lora")["o_lora"])
    for name, directions in stored.items():
        torch.testing.assert_close(
            directions.T @ directions, torch.eye(directions.shape[1]), atol=1e-4, rtol=0.0
        )
        left = own[name] - (own[name] @ directions) @ directions.T
        assert left.norm() < 1e-2 * own[name].norm()


@pytest.mark.parametrize("config", [OLoRAConfig(), InfLoRAConfig()], ids=lambda config: config.name)
def test_what_other_layers_left_is_refused(learner: Learner, tmp_path: Path, config: Any) -> None:
    path = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(3, 1) for name in rights(learner)}, path)
    with pytest.raises(SnapshotError, match="does not fit the policy"):
        begin(learner, config, artifacts={config.name: path})


# N-LoRA


def test_an_update_costs_the_sum_of_its_absolute_values() -> None:
    """An update of 2 * (1, -2) x (3, 0) changes weights by 6 and -12: a tenth of 18."""
    method = NLoRA(NLoRAConfig(strength=0.1), VIEW)
    method._factors = (("a", "b", 2.0),)
    weights = {
        "a": torch.tensor([[3.0, 0.0]], requires_grad=True),
        "b": torch.tensor([[1.0], [-2.0]], requires_grad=True),
    }
    value, gradients = gradients_of(method.parameter_penalty(weights), weights)
    assert value == pytest.approx(1.8)
    torch.testing.assert_close(gradients["b"], torch.tensor([[0.6], [-0.6]]))
    torch.testing.assert_close(gradients["a"], torch.tensor([[0.6, 0.0]]))


def test_the_penalty_makes_an_update_small(learner: Learner) -> None:
    """The value of a step is that of the weights before it."""
    sizes = []
    for strength in (1e-9, 1e-2):
        training = begin(learner, NLoRAConfig(strength=strength), lr=1e-2)
        for _ in range(6):
            before = weights_of(training)
            metrics = training.update(Batch(rows=NEW))
        size = sum(
            float(scale * (before[b] @ before[a]).abs().sum())
            for a, b, scale in factor_names(learner.policy.model)
        )
        assert metrics["retention/n_lora"] == pytest.approx(strength * size)
        sizes.append(size)
    assert sizes[1] < 0.7 * sizes[0]


# InfLoRA


def test_directions_are_the_largest_outside_of_the_basis() -> None:
    """Inputs along the axes with squared lengths 8, 1.5, .5; an earlier round read the first axis."""
    covariance = torch.diag(torch.tensor([8.0, 1.5, 0.5], dtype=torch.float64))
    basis = torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64)
    for taken, expected in ((None, [8.0, 1.5, 0.5]), (basis, [1.5, 0.5, 0.0])):
        values, directions = free_directions(taken, covariance, rank=2)
        assert values.tolist() == pytest.approx(expected)
        axes = directions.abs().argmax(dim=1).tolist()
        assert axes == ([0, 1] if taken is None else [1, 2])
        torch.testing.assert_close(directions @ directions.T, torch.eye(2, dtype=torch.float64))
    _, directions = free_directions(basis, covariance, rank=4)
    assert directions.shape == (4, 3)
    assert directions.norm(dim=1).tolist() == pytest.approx([1.0, 1.0, 0.0, 0.0])


def test_a_round_leaves_what_earlier_ones_read_alone(
    learner: Learner, models: dict[str, Path], tmp_path: Path
) -> None:
    """With the whole energy no earlier answer changes, although the round's own do; A does not move."""
    config = InfLoRAConfig(energy=1.0)
    first = begin(learner, config, lr=1e-2)
    assert first.update(Batch(rows=NEW))["retention/inflora"] == pytest.approx(1.0)
    keep(learner, models, tmp_path / "first")
    rows = OTHER
    first.write_artifacts(tmp_path / "kept", rows)
    artifacts = {"inflora": tmp_path / "kept" / "inflora.safetensors"}
    bases = load_file(artifacts["inflora"])
    changes = {}
    for methods in ((), (config,)):
        training = begin(learner, *methods, artifacts=artifacts, parent="first", lr=1e-2)
        start, before, own = weights_of(training), logprobs(training, rows), logprobs(training, NEW)
        training.optimizer.param_groups[0]["weight_decay"] = 0.1
        for _ in range(4):
            metrics = training.update(Batch(rows=NEW))
        changes[len(methods)] = float((logprobs(training, rows) - before).abs().max())
        assert float((logprobs(training, NEW) - own).abs().max()) > 1e-2
    assert 0.0 < metrics["retention/inflora"] < 1.0
    assert changes[1] < 1e-4 < changes[0]
    for name in rights(learner):
        assert torch.equal(start[name], weights_of(training)[name])
        lengths = start[name].norm(dim=1)
        assert all(v == pytest.approx(INITIAL_LENGTH, rel=1e-4) for v in lengths.tolist())
        assert (start[name] @ bases[name]).abs().max() < 1e-6

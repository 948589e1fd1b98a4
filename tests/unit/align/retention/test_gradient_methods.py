"""A-GEM, OGD and GPM: numbers by hand, and what steps of a real learner leave alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from align.algorithms.rows import Batch, Row
from align.config.retention.methods import AGEMConfig, GPMConfig, OGDConfig
from align.learner.batching import to_tensors
from align.learner.model.policy import completion_outputs
from align.learner.training import Training
from align.retention.activations import linear_weights
from align.retention.bases import grown
from align.retention.gradients.agem import AGEM
from align.retention.gradients.directions import Directions
from align.retention.gradients.gpm import GPM
from tests.unit.align.retention.trainings import (
    NEW,
    PAST,
    POLICIES,
    accepted,
    begin,
    learner_of,
    weights_of,
)
from tests.unit.tiny import row

OTHER = (row((11, 12), (13, 14, 15), 1.0), row((16, 2), (17, 5), -1.0))
"""Rows of another round."""


def alone() -> Any:
    """View of a learner with one rank."""
    return SimpleNamespace(policy=SimpleNamespace(sharded=False))


def logprobs(training: Training, rows: tuple[Row, ...]) -> Tensor:
    policy = training.learner.policy
    with torch.no_grad():
        return completion_outputs(
            policy.model, to_tensors(rows), dtype=torch.float32, temperature=1.0
        ).logprobs_N


# A-GEM


def test_a_conflicting_gradient_loses_its_part_along_the_reference() -> None:
    """g = (1, -3), reference (1, 1): g . r = -2, |r|^2 = 2, so g + r = (2, -2), and then g . r = 0."""
    method = AGEM(AGEMConfig(), alone())
    method.after_replay({"a": torch.tensor([1.0]), "b": torch.tensor([1.0])})
    gradients = {"a": torch.tensor([1.0]), "b": torch.tensor([-3.0])}
    method.project(gradients)
    assert (gradients["a"].tolist(), gradients["b"].tolist()) == ([2.0], [-2.0])
    assert method.after_step({}) == {"retention/agem": pytest.approx(2 / (2 * 10) ** 0.5)}


@pytest.mark.parametrize("reference", [[1.0, 1.0], [0.0, 0.0]])
def test_a_gradient_without_conflict_stays(reference: list[float]) -> None:
    method = AGEM(AGEMConfig(), alone())
    method.after_replay({"w": torch.tensor(reference)})
    gradients = {"w": torch.tensor([3.0, -1.0])}
    method.project(gradients)
    assert gradients["w"].tolist() == [3.0, -1.0]
    assert method.after_step({}) == {"retention/agem": 0.0}


@pytest.mark.parametrize("policy", POLICIES)
def test_replayed_rows_constrain_a_step_and_are_no_part_of_it(
    models: dict[str, Path], tmp_path: Path, policy: str
) -> None:
    """Gradients with A-GEM are those of the round's own rows, less their conflict with the replayed.

    With the opposite advantages the gradient of the own rows is the opposite, so one of both conflicts.
    """

    def gradient(own: tuple[Row, ...], replayed: tuple[Row, ...], *methods: AGEMConfig) -> Tensor:
        learner = learner_of(models, tmp_path, policy)
        training = begin(learner, *methods)
        with torch.no_grad():
            for index, parameter in enumerate(learner.policy.parameters()):
                parameter.add_(0.02 * (-1) ** index)
        training.update(Batch(rows=(*own, *replayed)))
        parts = [p.grad.flatten() for p in learner.policy.parameters() if p.grad is not None]
        return torch.cat(parts)

    against = tuple(replace(own, advantage=-(own.advantage or 0.0)) for own in NEW)
    conflicts = []
    for rows in (NEW, against):
        own, whole = gradient(rows, ()), gradient(rows, PAST)
        reference = whole - own
        product = float(own @ reference)
        expected = own - min(product, 0.0) / float(reference @ reference) * reference
        actual = gradient(rows, PAST, AGEMConfig())
        torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-4)
        assert float(actual @ reference) > -1e-3 * float(reference.norm() * actual.norm())
        conflicts.append(product < 0)
    assert sorted(conflicts) == [False, True]


# OGD


def test_directions_are_orthonormal_and_take_their_part_out() -> None:
    """(3, 4) and (1, 0) span the plane: what is left of (5, 6, 7) is (0, 0, 7)."""
    directions = Directions([], list)
    assert directions.add({"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0])})
    assert directions.vectors[0]["a"].tolist() == pytest.approx([0.6, 0.8])
    assert directions.add({"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0])})
    assert directions.vectors[1]["a"].tolist() == pytest.approx([0.8, -0.6])
    assert not directions.add({"a": torch.tensor([7.0, -2.0]), "b": torch.tensor([0.0])})
    vector = {"a": torch.tensor([5.0, 6.0]), "b": torch.tensor([7.0])}
    removed, before = directions.remove_from(vector)
    assert (removed, before) == (pytest.approx(61.0), pytest.approx(110.0))
    assert vector["a"].tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert vector["b"].tolist() == [7.0]


@pytest.mark.parametrize("policy", POLICIES)
def test_steps_under_ogd_are_orthogonal_to_every_stored_direction(
    models: dict[str, Path], tmp_path: Path, policy: str
) -> None:
    """Under Adam, with momentum from steps before: it is the weights' own way that is orthogonal."""
    learner = learner_of(models, tmp_path, policy)
    first = begin(learner, OGDConfig())
    first.update(Batch(rows=NEW))
    artifacts = accepted(first, tmp_path / "first", "ogd")
    training = begin(learner, OGDConfig(), artifacts=artifacts)
    (method,) = [m for m in training.penalties if m.name == "ogd"]
    directions = method._directions.vectors  # type: ignore[attr-defined]
    assert len(directions) == len(NEW)
    start = weights_of(training)
    for _ in range(3):
        metrics = training.update(Batch(rows=OTHER))
    assert 0.0 < metrics["retention/ogd"] <= 1.0
    way = {name: weight - start[name] for name, weight in weights_of(training).items()}
    length = sum(float(move.square().sum()) for move in way.values()) ** 0.5
    assert length > 1e-3
    for direction in directions:
        along = sum(float((direction[name] * move).sum()) for name, move in way.items())
        assert abs(along) < 1e-3 * length


def test_the_oldest_directions_go_first(models: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    config = OGDConfig(samples=3, most=4)
    learner = learner_of(models, tmp_path, "full")
    first = accepted(begin(learner, config), tmp_path / "first", "ogd")
    training = begin(learner, config, artifacts=first)
    training.write_artifacts(tmp_path / "second", OTHER)
    old, new = load_file(first["ogd"]), load_file(tmp_path / "second" / "ogd.safetensors")
    for name, stored in new.items():
        assert len(stored) == 4
        torch.testing.assert_close(stored[:2], old[name][1:])


# GPM


def test_a_basis_grows_by_the_fewest_directions_that_explain_enough() -> None:
    """Inputs along the axes with squared lengths 8, 1.5, .5: .8 takes one axis, .95 two, 1 all three."""
    covariance = torch.diag(torch.tensor([1.5, 8.0, 0.5], dtype=torch.float64))
    sizes = [grown(None, covariance, energy).shape[1] for energy in (0.8, 0.95, 1.0)]
    assert sizes == [1, 2, 3]
    basis = grown(None, covariance, 0.8)
    assert basis[:, 0].abs().tolist() == pytest.approx([0.0, 1.0, 0.0])
    # The next round reads along (1, 1, 0): half of that is explained, and one direction does the rest.
    inputs = torch.tensor([[1.0], [1.0], [0.0]], dtype=torch.float64)
    both = grown(basis, inputs @ inputs.T, 0.97)
    torch.testing.assert_close(both.T @ both, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(both @ both.T @ inputs, inputs)
    assert grown(both, inputs @ inputs.T, 1.0).shape[1] == 2


@pytest.mark.parametrize("policy", POLICIES)
def test_steps_under_gpm_leave_earlier_outputs_alone(
    models: dict[str, Path], tmp_path: Path, policy: str
) -> None:
    """With the whole energy no answer of the earlier round changes, and without the method all do."""
    learner = learner_of(models, tmp_path, policy)
    config = GPMConfig(energy=1.0)
    rows = (row((1, 2, 3), (4, 5), 1.0),)
    first = begin(learner)
    first.update(Batch(rows=rows))
    folder = tmp_path / "models" / policy
    learner.save(folder)
    models = {**models, "first": folder}
    learner._folder_of = lambda snapshot: models[snapshot]
    first = begin(learner, config, parent="first")
    first.write_artifacts(tmp_path / "kept", rows)
    artifacts = {"gpm": tmp_path / "kept" / "gpm.safetensors"}
    changes = {}
    for methods in ((), (config,)):
        training = begin(learner, *methods, artifacts=artifacts, parent="first")
        before, start = logprobs(training, rows), weights_of(training)
        for _ in range(3):
            training.update(Batch(rows=OTHER))
        changes[len(methods)] = float((logprobs(training, rows) - before).abs().max())
        moved = [
            name for name, weight in weights_of(training).items() if (weight != start[name]).any()
        ]
        assert moved
    assert changes[1] < 1e-3 < changes[0]
    if policy == "full":
        assert set(moved) <= set(linear_weights(learner.policy.model))


def test_a_model_with_tied_weights_projects_linear_layers_alone(
    models: dict[str, Path], tmp_path: Path
) -> None:
    names = linear_weights(learner_of(models, tmp_path, "full").policy.model)
    assert len(names) == 2 * 7 and not any("embed" in n or "lm_head" in n for n in names)
    factors = linear_weights(learner_of(models, tmp_path, "lora").policy.model)
    assert len(factors) == 2 * len(names) and all(".lora_" in name for name in factors)


def test_artifacts_of_another_adapter_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    from align.errors import SnapshotError

    full = learner_of(models, tmp_path, "full")
    for config in (OGDConfig(), GPMConfig()):
        artifacts = accepted(begin(full, config), tmp_path / config.name, config.name)
        with pytest.raises(SnapshotError, match=r"does not fit the policy") as error:
            begin(learner_of(models, tmp_path, "lora"), config, artifacts=artifacts)
        assert f"take {config.name} out" in str(error.value)


def test_transposed_layers_are_projected_from_the_other_side_and_not_over_ranks() -> None:
    """A matrix stored (in, out): directions of its rows go, and ranks would have a part of the rows."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from rollouts.errors import UserError

    model = nn.Sequential(Conv1D(2, 3))
    view: Any = SimpleNamespace(policy=SimpleNamespace(sharded=False, model=model))
    method: Any = GPM(GPMConfig(), view)
    method.before_round()
    method._bases = {"0.weight": torch.tensor([[0.0], [1.0], [0.0]])}
    gradients = {"0.weight": torch.arange(6.0).view(3, 2), "0.bias": torch.ones(2)}
    method.project(gradients)
    assert gradients["0.weight"].tolist() == [[0.0, 1.0], [0.0, 0.0], [4.0, 5.0]]
    assert gradients["0.bias"].tolist() == [0.0, 0.0]
    view.policy.sharded = True
    with pytest.raises(UserError, match=r"gpm projects whole inputs"):
        method.before_round()

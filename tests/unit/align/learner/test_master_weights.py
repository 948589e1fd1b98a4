"""Products in bfloat16 over weights in float32: a step too small for the one moves the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from align.algorithms.rows import Batch
from align.config.campaign import LoraConfig, OptimizerConfig
from align.learner.training import Training
from rollouts.engines.stored_tensor import read_stored
from tests.unit.align.learner.test_learner import ROWS, make, models, settings

__all__ = ["models"]

LARGE = 0.25
"""Number from which bfloat16 has steps of 2^-9 or more; a change below half of one is lost."""


def begun(models: dict[str, Path], tmp_path: Path, lr: float, **policy: object) -> Training:
    spec = settings(optimizer=OptimizerConfig(lr=lr))
    return make(models, tmp_path, spec, **{"dtype": "bfloat16", **policy})


def copies(training: Training) -> dict[str, torch.Tensor]:
    return {
        name: p.detach().clone() for name, p in training.learner.policy.named_parameters().items()
    }


def test_the_products_are_in_bfloat16(models: dict[str, Path], tmp_path: Path) -> None:
    exact, rounded = (
        begun(models, tmp_path, 1e-5, dtype=dtype).learner.completion_logprobs(list(ROWS))[1]
        for dtype in ("float32", "bfloat16")
    )
    assert 1e-4 < max(abs(a - b) for a, b in zip(exact, rounded, strict=True)) < 0.5


def test_a_step_that_bfloat16_would_lose_moves_the_weights(
    models: dict[str, Path], tmp_path: Path
) -> None:
    training = begun(models, tmp_path, 1e-5)
    before = copies(training)
    training.update(Batch(rows=ROWS))
    for name, weight in training.learner.policy.named_parameters().items():
        assert weight.dtype == torch.float32
        step = weight.detach() - before[name]
        assert 5e-6 < step.abs().max() < 2e-5  # Adam's first step is the learning rate.
        held = before[name].bfloat16()
        large = held.abs() >= LARGE
        assert large.any()
        assert torch.equal((held + step.bfloat16())[large], held[large])


def test_small_steps_add_up_until_engines_see_them(models: dict[str, Path], tmp_path: Path) -> None:
    """Engines round what they are given. Forty steps of 1e-4, each lost on its own, come to two of
    bfloat16's."""
    training = begun(models, tmp_path, 1e-4)
    before = copies(training)
    for _ in range(40):
        training.update(Batch(rows=ROWS))
    given = training.learner.weights("r/1").tensors
    assert given is not None
    assert given.keys() == before.keys()
    crossed = 0
    for name, weight in training.learner.policy.named_parameters().items():
        assert given[name].dtype == torch.float32
        assert torch.equal(given[name], weight)
        large = before[name].abs() >= LARGE
        crossed += int((given[name].bfloat16() != before[name].bfloat16())[large].sum())
    assert crossed > 100


@pytest.mark.parametrize("serve", ["adapter", "merged"])
def test_adapters_are_held_and_written_in_float32(
    models: dict[str, Path], tmp_path: Path, serve: str
) -> None:
    from safetensors.torch import load_file

    training = begun(
        models, tmp_path, 1e-6, lora=LoraConfig.model_validate({"rank": 2, "serve": serve})
    )
    base = {
        n: p.clone()
        for n, p in training.learner.policy.model.named_parameters()
        if "lora_" not in n
    }
    for _ in range(3):
        training.update(Batch(rows=ROWS))
    assert all(p.dtype == torch.float32 for p in training.learner.policy.model.parameters())
    # Sums of three steps of 1e-6 over a base that stays as it is, to the last bit.
    moved = [p for n, p in training.learner.policy.named_parameters().items() if "lora_B" in n]
    assert all(0 < p.abs().max() < 1e-5 for p in moved)
    now = dict(training.learner.policy.model.named_parameters())
    assert all(torch.equal(now[name], weight) for name, weight in base.items())
    update = training.learner.weights("r/1")
    if serve == "adapter":
        given = load_file(Path(str(update.adapter)) / "adapter_model.safetensors")
    else:
        assert update.tensors is not None
        given = read_stored(update.tensors)
    assert {tensor.dtype for tensor in given.values()} == {torch.float32}


def test_a_snapshot_loses_nothing(models: dict[str, Path], tmp_path: Path) -> None:
    training = begun(models, tmp_path, 1e-5)
    training.update(Batch(rows=ROWS))
    after = copies(training)
    (tmp_path / "snapshot").mkdir()
    training.learner.save(tmp_path / "snapshot")
    training.learner.load("base")
    training.learner.policy.load(tmp_path / "snapshot")
    found = copies(training)
    assert all(torch.equal(found[name], weight) for name, weight in after.items())

"""An adapter's dropout: it acts where the policy learns, and in no other pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from align.algorithms.rows import Batch
from align.config.campaign import AnchorConfig, AnchorsConfig, LoraConfig, PolicyConfig
from align.learner.learner import Learner
from align.learner.training import Training
from align.retention.methods import RetentionMethods
from tests.unit.align.learner.test_learner import REFERENCES, ROWS, gradients, settings
from tests.unit.tiny import save_model

LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.5)
LEARNT = [row for row in ROWS if row.advantage is not None]
HELD = AnchorsConfig(new=(), past=(AnchorConfig(to="owner", beta=1.0),), general=())
"""Past rows are held to the snapshot that the round before left behind: an adapter."""


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    return {"base": save_model(tmp_path / "base", 0), "other": save_model(tmp_path / "whole", 1)}


def begun(
    models: dict[str, Path], tmp_path: Path, anchored: bool = False, **policy: Any
) -> Training:
    """A learner whose adapter has moved: at first its update is zero, and dropping changes nothing."""
    learner = Learner(
        models["base"],
        PolicyConfig(model="tiny", **{"lora": LORA, **policy}),
        folder_of=lambda snapshot: models[snapshot],
        scratch=tmp_path,
        tolerance=1e9,
    )
    training = learner.begin(
        settings(), REFERENCES, num_steps=5, seed=0, penalties=RetentionMethods()
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in learner.policy.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    learner.policy.save(tmp_path / "first")
    models["other"] = tmp_path / "first"
    if anchored:
        training = learner.begin(
            settings(anchors=HELD), REFERENCES, num_steps=5, seed=1, penalties=RetentionMethods()
        )
    return training


def dropouts(training: Training) -> Iterator[torch.nn.Module]:
    yield from (
        m for m in training.learner.policy.model.modules() if isinstance(m, torch.nn.Dropout)
    )


@pytest.mark.parametrize("dora", [False, True])
def test_meters_and_probes_do_not_drop(models: dict[str, Path], tmp_path: Path, dora: bool) -> None:
    """Dropout is off from the first pass on, although peft activates it in a model that does not train."""
    training = begun(models, tmp_path, lora=LORA.model_copy(update={"dora": dora}))
    assert list(dropouts(training))
    assert training.divergence(LEARNT, "other") == pytest.approx(0.0, abs=1e-6)
    logprobs = training.learner.completion_logprobs(LEARNT)
    training.update(Batch(rows=tuple(LEARNT)))
    training.learner.load("other")
    assert training.learner.completion_logprobs(LEARNT) == logprobs


@pytest.mark.parametrize("dora", [False, True])
def test_updates_drop_before_and_after_an_anchor_was_asked(
    models: dict[str, Path], tmp_path: Path, dora: bool
) -> None:
    """Loading an anchor's adapter switches every module of the model to evaluation."""
    lora = LORA.model_copy(update={"dora": dora})
    training = begun(models, tmp_path, lora=lora, anchored=True)
    plain = begun(models, tmp_path, lora=lora.model_copy(update={"dropout": 0.0}), anchored=True)
    for _ in range(2):  # The second time the anchor is there already.
        training.learner.load("other")
        plain.learner.load("other")
        dropped, whole = (gradients(one, Batch(rows=ROWS)) for one in (training, plain))
        again = gradients(training, Batch(rows=ROWS))
        assert not torch.allclose(dropped, again, rtol=1e-3)
        assert not torch.allclose(dropped, whole, rtol=1e-3)
        # What is measured beside it is as steady as ever.
        assert training.divergence(LEARNT, "other") == pytest.approx(0.0, abs=1e-6)


def test_an_anchor_says_what_its_snapshot_says(models: dict[str, Path], tmp_path: Path) -> None:
    """Asked in the middle of an update, with the policy's own dropout at work."""
    training = begun(models, tmp_path, anchored=True)
    plain = begun(models, tmp_path, lora=LORA.model_copy(update={"dropout": 0.0}), anchored=True)
    said: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for index, one in enumerate((training, plain)):
        whole = one.learner.anchors.outputs

        def outputs(*args: Any, whole: Any = whole, index: int = index) -> Any:
            result = whole(*args)
            said[index].append(result.logprobs_N)
            return result

        one.learner.anchors.outputs = outputs  # type: ignore[method-assign, assignment]
        one.update(Batch(rows=ROWS))
    assert len(said[0]) == len(said[1]) > 0
    for own, other in zip(said[0], said[1], strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("anchored", [False, True])
def test_recomputed_layers_drop_the_same_inputs(
    models: dict[str, Path], tmp_path: Path, anchored: bool
) -> None:
    """The backward pass runs them again: in the same mode, whatever ran in between."""
    kept, recomputed = (
        begun(models, tmp_path, anchored=anchored, gradient_checkpointing=chosen)
        for chosen in (False, True)
    )
    found = []
    for training in (kept, recomputed):
        torch.manual_seed(5)
        found.append(gradients(training, Batch(rows=ROWS)))
    torch.testing.assert_close(found[0], found[1])


def test_the_models_own_dropout_never_acts(models: dict[str, Path], tmp_path: Path) -> None:
    """Engines have none, so what the base was pretrained with stays off: only adapters drop."""
    training = begun(models, tmp_path, anchored=True)
    seen: list[bool] = []
    for name, module in training.learner.policy.model.named_modules():
        if "lora" not in name and not hasattr(module, "lora_dropout"):
            module.register_forward_hook(lambda m, *_: seen.append(m.training))
    training.update(Batch(rows=ROWS))
    assert seen
    assert not any(seen)


def test_modes_are_as_they_were_after_a_pass(models: dict[str, Path], tmp_path: Path) -> None:
    training = begun(models, tmp_path, anchored=True)
    for active in (True, False):
        for module in dropouts(training):
            module.train(active)
        training.learner.completion_logprobs(LEARNT)
        training.divergence(LEARNT, "base")
        assert {module.training for module in dropouts(training)} == {active}

"""Memory aware synapses: the importance against the model's own logits, and how rounds add up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from align.config.retention.methods import MASConfig
from tests.unit.align.retention.trainings import (
    NEW,
    POLICIES,
    accepted,
    begin,
    learner_of,
)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_importance_is_the_mean_absolute_gradient_of_the_squared_logits(
    models: dict[str, Path], tmp_path: Path, policy: str
) -> None:
    from safetensors.torch import load_file

    training = begin(learner_of(models, tmp_path, policy), MASConfig())
    model, named = training.learner.policy.model, training.learner.policy.named_parameters()
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.add_(0.1 if "lora_B" in name else 0.0)
    expected = {name: torch.zeros_like(p) for name, p in named.items()}
    for sample in NEW:
        tokens = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
        logits = model(input_ids=tokens, use_cache=False).logits[0].float()
        first = len(sample.prompt_ids) - 1
        answer = logits[first : first + len(sample.completion_ids)]
        number = answer.square().sum(-1).mean()
        gradients = torch.autograd.grad(number, list(named.values()), allow_unused=True)
        for name, gradient in zip(named, gradients, strict=True):
            if gradient is not None:
                expected[name] += gradient.abs() / len(NEW)
    actual = load_file(accepted(training, tmp_path / "kept", "mas")["mas"])
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-3, atol=1e-5)
    assert any(tensor.any() for tensor in actual.values())


def test_the_running_importance_decays_by_gamma(models: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    learner = learner_of(models, tmp_path, "full")
    first = accepted(begin(learner, MASConfig()), tmp_path / "first", "mas")
    second = begin(learner, MASConfig(gamma=0.5), artifacts=first)
    total = load_file(accepted(second, tmp_path / "second", "mas")["mas"])
    for name, own in load_file(first["mas"]).items():
        torch.testing.assert_close(total[name], 1.5 * own)

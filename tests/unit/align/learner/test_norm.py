"""The normalisation with its own gradient: autograd's numbers, on every model that computes it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from align.learner.model.norm import FloatNorm, speed_up_norms

KINDS = [LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm]


def pair(kind: Any, width: int = 6) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = kind(width, eps=1e-5)
    nn.init.normal_(plain.weight)
    quick = deepcopy(plain)
    speed_up_norms(quick)
    return plain, quick


def outcome(module: nn.Module, given: Tensor) -> list[Tensor]:
    """Result, and the gradients of input and weight."""
    own = given.clone().requires_grad_()
    out = module(own)
    (out * torch.arange(out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
    assert own.grad is not None
    return [out.detach(), own.grad, *[p.grad for p in module.parameters() if p.grad is not None]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 6), (1, 5, 6), (2, 4, 3, 6)])
def test_the_same_numbers_and_gradients(kind: Any, shape: tuple[int, ...]) -> None:
    plain, quick = pair(kind)
    given = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    own, reference = outcome(quick, given), outcome(plain, given)
    assert isinstance(quick, FloatNorm) and len(own) == len(reference) == 3
    for ours, expected in zip(own, reference, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_worked_by_hand() -> None:
    """``x = (3, 4)``: the mean square is 12.5, and along x nothing changes."""
    _, quick = pair(LlamaRMSNorm, width=2)
    quick.variance_epsilon = 0.0  # type: ignore[assignment]
    with torch.no_grad():
        quick.weight.fill_(2.0)  # type: ignore[operator, union-attr]
    given = torch.tensor([[3.0, 4.0]], requires_grad=True)
    out = quick(given)
    torch.testing.assert_close(out, torch.tensor([[6.0, 8.0]]) / 12.5**0.5)
    (gradient,) = torch.autograd.grad(out, given, torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(gradient, torch.zeros(1, 2), atol=1e-6, rtol=0)


def test_frozen_weights_get_no_gradient() -> None:
    _, quick = pair(LlamaRMSNorm)
    quick.requires_grad_(False)
    given = torch.randn(3, 6, requires_grad=True)
    quick(given).sum().backward()
    assert given.grad is not None and quick.weight.grad is None


def test_a_module_that_computes_something_else_stays_what_it_is() -> None:
    """Gemma's multiplies by one plus the weight."""
    model = nn.Sequential(GemmaRMSNorm(6), nn.RMSNorm(6), nn.LayerNorm(6))
    speed_up_norms(model)
    assert not any(isinstance(part, FloatNorm) for part in model)


def test_other_precisions_and_names_stay() -> None:
    plain, quick = pair(LlamaRMSNorm)
    given = torch.randn(3, 6)
    assert torch.equal(quick.double()(given.double()), plain.double()(given.double()))
    assert [name for name, _ in quick.named_parameters()] == ["weight"]
    assert type(quick).__name__ == "LlamaRMSNorm"


def test_twice_changes_nothing() -> None:
    _, quick = pair(LlamaRMSNorm)
    kind = type(quick)
    speed_up_norms(quick)
    assert type(quick) is kind

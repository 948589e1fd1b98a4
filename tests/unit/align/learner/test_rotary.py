"""Rotary embeddings with a gradient of their own: autograd's numbers, for every model that rotates so."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.cohere import modeling_cohere
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from align.learner.model.rotary import APPLY, speed_up_rotary

SAME = [modeling_llama, modeling_mistral, modeling_qwen2, modeling_qwen3]


def part_of(code: Any) -> nn.Module:
    """Return a module whose class is defined in a model's code."""
    return type("Part", (nn.Module,), {"__module__": code.__name__})()  # type: ignore[no-any-return]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], Callable[..., Any]]]:
    """The function of a model's code as transformers wrote it, which the code has again afterwards."""

    def restored(code: Any) -> Callable[..., Any]:
        current = getattr(code, APPLY)
        function: Callable[..., Any] = getattr(current, "args", (current,))[0]
        monkeypatch.setattr(code, APPLY, function)
        return function

    yield restored


def states(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Queries of four heads, keys of two, cosines and sines of three rows; no half repeats the other."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4, 5, 8), (3, 2, 5, 8), (3, 5, 8), (3, 5, 8))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def outcome(function: Callable[..., Any], query: Tensor, key: Tensor, *angles: Tensor) -> Any:
    own = [part.clone().requires_grad_() for part in (query, key)]
    rotated = function(*own, *angles)
    total = sum((r * torch.linspace(-1, 2, r.numel()).view(r.shape)).sum() for r in rotated)
    return [*rotated, *torch.autograd.grad(total, own)]


@pytest.mark.parametrize("code", SAME)
def test_the_same_numbers_and_gradients(code: Any, plain: Any) -> None:
    expected = outcome(plain(code), *states())
    speed_up_rotary(part_of(code))
    quick = getattr(code, APPLY)
    for ours, reference in zip(outcome(quick, *states()), expected, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)
    speed_up_rotary(part_of(code))
    assert getattr(code, APPLY) is quick


def test_a_quarter_turn_by_hand(plain: Any) -> None:
    """A turn by 90 degrees makes ``(-b, a)`` of ``(a, b)``, and a gradient turns back."""
    plain(modeling_llama)
    speed_up_rotary(part_of(modeling_llama))
    query = torch.tensor([[[[3.0, 4.0]]]], requires_grad=True)
    cos, sin = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
    out, _ = modeling_llama.apply_rotary_pos_emb(query, query.detach(), cos, sin)
    assert out.flatten().tolist() == [-4.0, 3.0]
    (gradient,) = torch.autograd.grad(out, query, torch.tensor([[[[1.0, 0.0]]]]))
    assert gradient.flatten().tolist() == [0.0, -1.0]


@pytest.mark.parametrize("code", [modeling_cohere, sys.modules[__name__]])
def test_code_that_rotates_otherwise_or_not_stays(code: Any) -> None:
    """Cohere's pairs are neighbours."""
    before = getattr(code, APPLY, None)
    speed_up_rotary(part_of(code))
    assert getattr(code, APPLY, None) is before


def test_a_part_of_a_head_is_left_to_the_models_own_function(plain: Any) -> None:
    """GPT-NeoX rotates the first quarter of a head."""
    function = plain(modeling_gpt_neox)
    query, key, cos, sin = states()
    partly = (query, key, cos[..., :4], sin[..., :4])
    expected = outcome(function, *partly)
    speed_up_rotary(part_of(modeling_gpt_neox))
    quick = getattr(modeling_gpt_neox, APPLY)
    for ours, reference in zip(outcome(quick, *partly), expected, strict=True):
        torch.testing.assert_close(ours, reference)


def test_other_precisions_take_the_models_own_function(plain: Any) -> None:
    function = plain(modeling_llama)
    speed_up_rotary(part_of(modeling_llama))
    low = states(torch.bfloat16)
    for ours, reference in zip(
        modeling_llama.apply_rotary_pos_emb(*low), function(*low), strict=True
    ):
        assert torch.equal(ours, reference)

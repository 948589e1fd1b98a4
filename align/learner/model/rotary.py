"""Rotary position embeddings in float32 on a CPU, with their own gradient.

In transformers' form a rotation has four operations and autograd's backward pass nine, which together take
twice as long as multiplying and adding the halves ``a`` and ``b`` of a head in place:

    a' = a cos_a - b sin_a,    b' = b cos_b + a sin_b

The gradient is a rotation too, with both sines exchanged and negated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

APPLY = "apply_rotary_pos_emb"
"""Name of the function for rotations in the code of transformers' models."""
SAME = 1e-5
"""Largest difference between a function's result and the formula's that counts as rounding."""

Rotate = Callable[..., tuple[Tensor, Tensor]]
"""Function of queries, keys, cosines and sines that returns rotated queries and keys."""


def speed_up_rotary(model: nn.Module) -> None:
    """Let a model's code rotate by the formula if its own function computes the same."""
    for name in {type(module).__module__ for module in model.modules()}:
        code = sys.modules.get(name)
        function = getattr(code, APPLY, None)
        is_quick = isinstance(function, partial) and function.func is rotate
        if function is not None and not is_quick and _is_rotation(function):
            setattr(code, APPLY, partial(rotate, function))


def rotate(
    function: Rotate, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *rest: Any, **how: Any
) -> tuple[Tensor, Tensor]:
    """Rotate by the formula, or by the model's own function for another precision, device or call.

    Args:
        function: function of the model's own code.
        how: ``unsqueeze_dim``, the axis that cosines lack.
    """
    usual = not rest and how.keys() <= {"unsqueeze_dim"} and cos.shape[-1] == query.shape[-1]
    states = (query, key, cos, sin)
    plain = all(part.dtype == torch.float32 and part.device.type == "cpu" for part in states)
    if not usual or not plain:
        return function(query, key, cos, sin, *rest, **how)
    wide = [angles.unsqueeze(how.get("unsqueeze_dim", 1)) for angles in (cos, sin)]
    return _rotated(query, *wide), _rotated(key, *wide)


@torch.no_grad()
def _is_rotation(function: Rotate) -> bool:
    """Tell if a function has the formula's results for some numbers."""
    query, key = torch.linspace(-2.0, 3.0, 48).view(1, 2, 3, 8), torch.ones(1, 1, 3, 8)
    cos, sin = torch.linspace(-1.0, 1.0, 48).view(2, 1, 3, 8)
    expected = (_rotated(states, cos[:, None], sin[:, None]) for states in (query, key))
    try:
        results = function(query, key, cos, sin)
    except (TypeError, RuntimeError, ValueError):
        return False
    return all(
        result.shape == rotated.shape and bool((result - rotated).abs().max() <= SAME)
        for result, rotated in zip(results, expected, strict=True)
    )


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out: Tensor = _Rotation.apply(states, cos, sin)  # type: ignore[no-untyped-call]
    return out


class _Rotation(torch.autograd.Function):
    """Autograd function of the formula; heads of size ``D``, cosines and sines of the same size."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        sin_a, sin_b = sin.chunk(2, -1)
        return _turned(states, cos, -sin_a, sin_b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        sin_a, sin_b = sin.chunk(2, -1)
        return _turned(grad, cos, sin_b, -sin_a), None, None


def _turned(states: Tensor, cos: Tensor, of_b: Tensor, of_a: Tensor) -> Tensor:
    """Compute ``a cos + b of_b`` and ``b cos + a of_a`` of the halves."""
    out = states * cos
    for half, other, factor in zip(
        out.chunk(2, -1), reversed(states.chunk(2, -1)), (of_b, of_a), strict=True
    ):
        half.addcmul_(other, factor)
    return out

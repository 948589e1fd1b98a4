"""Adapted linear layers in float32 on a CPU, as one operation with a gradient of its own.

Written out as peft does it, an adapter makes three tensors as large as the layer's output, in both
directions: its product, the same scaled, and the sum. Here small products are added to large ones in place:

    y = x W^T + s (x A^T) B^T,    dx = g W + s (g B) A,    dA = s (g B)^T x,    dB = s g^T (x A^T)

The base's weight W is frozen. Other precisions and devices keep peft's path, and so do dropout while it
acts, adapters that are no plain sum, and several at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from align.learner.model.linear import FloatLinear, product, with_mixin


class LowRankLinear(nn.Module):
    """Mixin for peft's linear layer with low-rank adapters."""

    def forward(self, x: Tensor, *rest: Any, **how: Any) -> Tensor:
        """Return the adapted product, the last axis of ``x`` being the layer's input."""
        name = None if rest or how else plain_adapter(self, x)
        if name is None:
            out: Tensor = super().forward(x, *rest, **how)
            return out
        layer: Any = self
        base = layer.base_layer
        flat: Tensor = _LowRankProduct.apply(  # type: ignore[no-untyped-call]
            x.reshape(-1, x.shape[-1]),
            base.weight,
            base.bias,
            layer.lora_A[name].weight,
            layer.lora_B[name].weight,
            layer.scaling[name],
            isinstance(base, FloatLinear),
        )
        return flat.view(*x.shape[:-1], -1)


def speed_up_adapter(model: nn.Module) -> None:
    """Make every linear layer of peft's a `LowRankLinear`; parameters and names stay what they are."""
    from peft.tuners.lora.layer import Linear

    kind: Any = Linear
    quick = with_mixin(LowRankLinear, kind)
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = quick


def plain_adapter(layer: Any, x: Tensor) -> str | None:
    """Return the one adapter that acts on a layer as a plain sum on these inputs; None if peft must act."""
    base = layer.base_layer
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or len(active) != 1:
        return None
    (name,) = active
    factors = (layer.lora_A[name], layer.lora_B[name])
    special = name in layer.lora_variant or layer.lora_bias[name] or layer.fan_in_fan_out
    drop = layer.lora_dropout[name]
    drops = drop.training and not isinstance(drop, nn.Identity)
    frozen = isinstance(base, nn.Linear) and not base.weight.requires_grad
    if special or drops or not frozen or torch.is_autocast_enabled("cpu"):
        return None
    tensors = (x, base.weight, *(factor.weight for factor in factors))
    same = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
    return name if same and x.numel() else None


class _LowRankProduct(torch.autograd.Function):
    """Autograd function of the formula; ``M`` inputs of size ``K`` to ``N`` outputs, rank ``R``."""

    @staticmethod
    def forward(
        ctx: Any,
        input_MK: Tensor,
        weight_NK: Tensor,
        bias_N: Tensor | None,
        right_RK: Tensor,
        left_NR: Tensor,
        scale: float,
        is_quick: bool,
    ) -> Tensor:
        low_MR = input_MK @ right_RK.T
        ctx.save_for_backward(input_MK, weight_NK, right_RK, left_NR, low_MR)
        ctx.scale, ctx.multiply = scale, product if is_quick else linear
        out_MN: Tensor = ctx.multiply(input_MK, weight_NK)
        if bias_N is not None:
            out_MN.add_(bias_N)
        return out_MN.addmm_(low_MR, left_NR.T, alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MN: Tensor) -> tuple[Tensor | None, ...]:
        input_MK, weight_NK, right_RK, left_NR, low_MR = ctx.saved_tensors
        of_input, _, of_bias, of_right, of_left, *_ = ctx.needs_input_grad
        grad_MR = (grad_MN @ left_NR).mul_(ctx.scale)
        of_x = ctx.multiply(grad_MN, weight_NK.T).addmm_(grad_MR, right_RK) if of_input else None
        return (
            of_x,
            None,
            grad_MN.sum(0) if of_bias else None,
            grad_MR.T @ input_MK if of_right else None,
            (grad_MN.T @ low_MR).mul_(ctx.scale) if of_left else None,
            None,
            None,
        )

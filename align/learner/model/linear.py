"""Linear layers in float32 on a CPU, through oneDNN.

For a float32 product torch calls MKL, which uses half of the vector width of processors that are not
Intel's; oneDNN generates its kernels for the processor at hand. On an AMD EPYC with AVX-512 the same
products run twice as fast and differ only in the last bits, by the order of sums. Other precisions and
devices keep torch's own path, which already uses oneDNN for bfloat16.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class FloatLinear(nn.Linear):
    """Linear layer that uses the faster of torch's two libraries."""

    def forward(self, input: Tensor) -> Tensor:
        served = input.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        if not (served and input.dtype == self.weight.dtype == torch.float32 and input.numel()):
            return super().forward(input)
        flat = input.reshape(-1, self.in_features)
        out: Tensor = _Product.apply(flat, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return out.view(*input.shape[:-1], self.out_features)


def speed_up(model: nn.Module) -> None:
    """Make every plain linear layer a `FloatLinear`, with the same parameters and names."""
    if not _is_served():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FloatLinear


@cache
def with_mixin(mixin: Any, kind: Any) -> type[nn.Module]:
    """Return a subclass of a mixin and a module's class; repeated calls give the same one.

    A module whose ``__class__`` becomes it keeps its parameters and names, and gets the mixin's methods.
    """
    return type(kind.__name__, (mixin, kind), {"__module__": kind.__module__})


def product(left_MK: Tensor, right_NK: Tensor) -> Tensor:
    """Compute ``left @ right.T`` in float32 on a CPU, by torch itself if oneDNN is not available."""
    if not _is_served():
        return left_MK @ right_NK.T
    out_MN: Tensor = torch.ops.mkldnn._linear_pointwise(left_MK, right_NK, None, "none", [], "")
    return out_MN


def _is_served() -> bool:
    """Tell if oneDNN is available and faster: processors without AVX-512 do not profit."""
    served: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return served and torch.backends.cpu.get_cpu_capability() == "AVX512"


class _Product(torch.autograd.Function):
    """Autograd function ``x @ W.T + b`` whose value and gradients are products by oneDNN."""

    @staticmethod
    def forward(ctx: Any, input_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        ctx.save_for_backward(input_MK, weight_NK)
        out_MN = product(input_MK, weight_NK)
        return out_MN if bias_N is None else out_MN.add_(bias_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MN: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input_MK, weight_NK = ctx.saved_tensors
        of_input, of_weight, of_bias = ctx.needs_input_grad
        return (
            product(grad_MN, weight_NK.T) if of_input else None,
            product(grad_MN.T, input_MK.T) if of_weight else None,
            grad_MN.sum(0) if of_bias else None,
        )

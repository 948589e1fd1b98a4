"""Inputs and outputs of the trained linear layers, as the policy's own passes have them.

A trained matrix is a linear layer's own, or a factor of an adapter: A reads the layer's input, and B reads
what A gives. Factors are computed here, since a layer may run its adapter as one operation. Matrices that
are no linear layer's alone (embeddings, tied heads, norms, biases, fused experts) are not among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from align.learner.model.adapter import TRAINED
from align.learner.ranks.sharding import whole

See = Callable[[str, Tensor, Tensor], None]
"""Function of a parameter's name, its inputs (tokens, in) and its outputs (tokens, out)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearWeight:
    """Trained matrix of a linear layer."""

    name: str
    transposed: bool = False
    """True if the matrix is stored (in, out), as in transformers' Conv1D."""

    def rows(self, tensor: Tensor) -> Tensor:
        """Return a tensor that is laid out like the matrix as (out, in), sharing its memory."""
        return tensor.T if self.transposed else tensor


def linear_weights(model: nn.Module) -> dict[str, LinearWeight]:
    """Return the trained matrices of linear layers by parameter name."""
    return {weight.name: weight for _, weights in _layers(model) for weight in weights}


@contextmanager
def watching(model: nn.Module, see: See) -> Iterator[None]:
    """Show ``see`` what passes with a gradient read and write at each trained matrix, within the block.

    Passes of frozen snapshots have no gradient and are not shown. Passes side by side call ``see`` from
    threads of their own.
    """
    with ExitStack() as handles:
        for module, weights in _layers(model):
            names = [weight.name for weight in weights]
            hook = _see_adapter if len(names) == 2 else _see_layer
            handle = module.register_forward_hook(partial(hook, see, names))
            handles.callback(handle.remove)
        yield


def _layers(model: Any) -> Iterator[tuple[nn.Module, list[LinearWeight]]]:
    """Yield each layer with its trained matrices: its own, or the factors A and B of its adapter."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            factors = (f"{name}.lora_{factor}.{TRAINED}.weight" for factor in "AB")
            yield module, [LinearWeight(name=factor) for factor in factors]
        elif _is_linear(module) and ".lora_" not in name:
            weight = module.weight
            if weight.requires_grad and owners[id(weight)] == 1:
                transposed = not isinstance(module, nn.Linear)
                yield module, [LinearWeight(name=f"{name}.weight", transposed=transposed)]


def _is_linear(module: Any) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _see_layer(see: See, names: list[str], _: nn.Module, inputs: Any, output: Tensor) -> None:
    if torch.is_grad_enabled():
        see(names[0], _tokens(inputs[0]), _tokens(output))


@torch.no_grad()
def _factor(inputs: Tensor, layer: Any) -> Tensor:
    return inputs @ whole(layer.weight).to(inputs.dtype).T


def _see_adapter(see: See, names: list[str], module: Any, inputs: Any, _: Tensor) -> None:
    if torch.is_grad_enabled():
        read = _tokens(inputs[0])
        low = _factor(read, module.lora_A[TRAINED])
        see(names[0], read, low)
        see(names[1], low, _factor(low, module.lora_B[TRAINED]))


def _tokens(tensor: Tensor) -> Tensor:
    return tensor.detach().float().flatten(0, -2)

"""Full weights dealt out over ranks (FSDP2), and the way back to whole tensors.

A decoder layer is gathered for its own forward and backward pass. What belongs to no layer (embedding,
last norm, output head) stays gathered from a forward pass until the backward pass has ended, or until
`drop_gathered`: the learner calls the head after the decoder, in pieces, and again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

ENTRY = "run_decoder"
"""Attribute of a sharded model that runs its decoder."""


def shard(model: Any, device: torch.device) -> None:
    """Leave each rank its part of every parameter, on ``device`` and in float32, and let gradients add up
    over ranks.

    A model whose weights are mapped files never lies in memory as a whole: one layer after the other does.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for layer in decoder_layers(model):
        fully_shard(layer.float(), mesh=mesh)
    for parameter in model.parameters():
        if not isinstance(parameter, DTensor):
            parameter.data = parameter.data.float()
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    _sum_gradients(model)
    # FSDP gathers the root's weights when the model is called, and the learner calls the decoder alone.
    decoder = model.get_decoder()
    setattr(model, ENTRY, lambda **inputs: decoder(**inputs))
    register_fsdp_forward_method(model, ENTRY)


def shard_head(head: nn.Linear, device: torch.device) -> None:
    """Leave each rank its rows of a linear head that is called by itself.

    A head of one row lies on the first rank; the others have parts without elements.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(head, mesh=init_device_mesh(device.type, (torch.distributed.get_world_size(),)))
    _sum_gradients(head)


def _sum_gradients(model: nn.Module) -> None:
    """Let gradients be sums over ranks: the loss is divided by the whole batch's denominators already."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def decoder_of(model: Any) -> Callable[..., Any]:
    """Return what runs the decoder of a causal language model, sharded or not."""
    decoder: Callable[..., Any] = getattr(model, ENTRY, None) or model.get_decoder()
    return decoder


def decoder_layers(model: Any) -> list[nn.Module]:
    """List the layers of a transformers model, whatever it calls them."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    decoder = model.get_decoder()
    return [part for part in decoder.modules() if isinstance(part, GradientCheckpointingLayer)]


def drop_gathered(model: nn.Module) -> None:
    """Let the model's parameters be this rank's parts again; nothing happens to a model that is whole."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Return the full tensor. Of a sharded one all ranks must ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part, sharing its memory; a tensor that is not sharded is its own part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_like(full: Tensor, like: Tensor | None) -> Tensor:
    """Return this rank's part of a full tensor that all ranks have, laid out as ``like``.

    It needs no communication.
    """
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)


def gathered(tensors: Iterable[tuple[str, Tensor]], *, keep: bool) -> dict[str, Tensor]:
    """Return whole tensors by name, on the host, tied ones once.

    All ranks take part, and only those that ``keep`` them ever hold more than one.
    """
    whole_tensors: dict[str, Tensor] = {}
    ids: set[int] = set()
    for name, tensor in tensors:
        if id(tensor) in ids:
            continue
        ids.add(id(tensor))
        full = whole(tensor.detach())
        if keep:
            whole_tensors[name] = full.cpu()
    return whole_tensors

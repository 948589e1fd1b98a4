"""AdamW whose moments take a byte each, with a scale for every 256 of them.

Dettmers et al. 2022, arXiv 2110.02861, as bitsandbytes computes it. The package knows no sharded weights:
here each rank steps its own part of them. A tensor, or a rank's part of one, of fewer than 4,096 numbers
keeps moments in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from align.learner.quantized.library import bitsandbytes
from align.learner.ranks.sharding import local

BLOCK = 256
"""Numbers that share a scale."""
CODES = "qmap"
"""Prefix of the tables in the state of every weight, which are constants of the package."""
SCALES = "absmax"
"""Prefix of the scales in that state."""


class EightBitAdamW:
    """Mixin for bitsandbytes' AdamW that steps the local parts of sharded weights."""

    state: dict[Any, dict[str, Any]]
    param_groups: list[dict[str, Any]]

    def init_state(self, group: Any, p: Any, gindex: int, pindex: int) -> None:
        """Make the moments of one weight."""
        part, library = _local_parameter(p), cast(Any, super())
        library.init_state(group, part, gindex, pindex)
        if part is not p:
            self.state[p] = self.state.pop(part)

    def update_step(self, group: Any, p: Any, gindex: int, pindex: int) -> None:
        """Step one weight, in place."""
        part, library = _local_parameter(p), cast(Any, super())
        if part is not p:
            self.state[part] = self.state[p]
        library.update_step(group, part, gindex, pindex)
        if part is not p:
            del self.state[part]

    def saved(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return what changes of one weight's state, as tensors; nothing before its first step."""
        return {
            key: torch.as_tensor(value)
            for key, value in self.state.get(parameter, {}).items()
            if not key.startswith(CODES)
        }

    def restore(self, parameter: nn.Parameter, saved: Mapping[str, Tensor]) -> None:
        """Take the state of one weight that `saved` returned."""
        group, index = next(
            (group, index)
            for group, settings in enumerate(self.param_groups)
            for index, candidate in enumerate(settings["params"])
            if candidate is parameter
        )
        self.init_state(self.param_groups[group], parameter, group, index)
        state = self.state[parameter]
        for key, tensor in saved.items():
            if isinstance(state[key], Tensor):
                state[key].copy_(tensor)
            else:
                state[key] = int(tensor)


def eight_bit_adamw(groups: list[dict[str, Any]], **settings: Any) -> torch.optim.Optimizer:
    """Make the optimizer.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    optimizer: torch.optim.Optimizer = _optimizer_class()(groups, **settings)
    return optimizer


def eight_bit(optimizer: Any) -> EightBitAdamW | None:
    """Return the optimizer if its moments are in 8 bits, else None."""
    return optimizer if isinstance(optimizer, EightBitAdamW) else None


def moment_shape(key: str, part: torch.Size) -> torch.Size:
    """Return the shape of a moment, or of the scales of one, by its key and the shape of the weights.

    >>> moment_shape("absmax1", torch.Size([3, 100])), moment_shape("exp_avg", torch.Size([3, 100]))
    (torch.Size([2]), torch.Size([3, 100]))
    """
    return torch.Size([-(-part.numel() // BLOCK)]) if key.startswith(SCALES) else part


@cache
def _optimizer_class() -> type[torch.optim.Optimizer]:
    adamw = bitsandbytes().optim.AdamW8bit
    return type("EightBitAdamW", (EightBitAdamW, adamw), {})


def _local_parameter(parameter: nn.Parameter) -> nn.Parameter:
    """Return this rank's part of a sharded weight and its gradient, sharing their memory."""
    if not isinstance(parameter, DTensor):
        return parameter
    part = nn.Parameter(local(parameter.detach()), requires_grad=False)
    assert part.is_contiguous(), "the package steps a copy of anything else"
    part.grad = None if parameter.grad is None else local(parameter.grad)
    return part

"""Several low-rank adapters on one base, mixed row by row.

An adapter of rank ``R = n * r`` holds ``n`` increments of rank ``r``. Row ``b`` of a pass is computed with
the weights ``W + sum_i w_bi c B_i A_i``, with ``w_bi`` from its `Mix` and ``c`` LoRA's scale.
Joined along the rank this is one product with a gate, so rows under different adapters go through one pass:

    y_b = W x_b + B (g_b * (A x_b)),    A = [A_1; A_2; ...],  B = [B_1 B_2 ...],  g_b = c [w_b1, w_b2, ...]

Increments whose weight is 0 in every row of a pass cost nothing. Shapes: ``B`` rows, ``R`` ranks.
Source: JARe of Peng et al. 2024, arXiv 2404.07470, whose code mixes a whole batch alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from rollouts.engines.protocol import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BankAdapter
from rollouts.types import Mix


class Gates:
    """Gate of every adapter that acts in the present pass, of shape ``B, 1, R``; no entry: it rests."""

    def __init__(self) -> None:
        self.by_adapter: Mapping[str, Tensor] = {}


class GatedLinear(nn.Module):
    """Mixin for peft's linear layer: adds gated adapters to the base's product.

    The layer's input has rows first, then positions, then features.
    """

    gates: Gates

    def forward(self, x: Tensor, *rest: Any, **how: Any) -> Tensor:
        """Return the product under the adapters of each row."""
        layer: Any = self
        if self.gates.by_adapter and x.dim() != 3:
            raise ValueError(
                f"a layer's input has {x.dim()} axes, not rows, positions and features, so its rows cannot "
                "have adapters of their own; leave the layer out of policy.lora.targets"
            )
        out: Tensor = layer.base_layer(x, *rest, **how)
        for name, gate_B1R in self.gates.by_adapter.items():
            right, left = layer.lora_A[name].weight, layer.lora_B[name].weight
            low = linear(x.to(right.dtype), right) * gate_B1R
            out = out + linear(low.to(left.dtype), left).to(out.dtype)
        return out


class AdapterBank:
    """Adapters that a transformers model holds side by side.

    Args:
        model: causal language model, or peft's wrapper of one that has an adapter of its own.
    """

    def __init__(self, model: Any) -> None:
        self._model: Any = model
        self.gates = Gates()
        self._folders: dict[str, BankAdapter] = {}
        self._increments: dict[str, int] = {}
        self._slots: dict[str, str] = {}
        self._adopted: set[str] = set()
        if hasattr(model, "peft_config"):
            self._gate_layers()

    @property
    def adapters(self) -> Mapping[str, BankAdapter]:
        """Adapters that mixes may name."""
        return self._folders

    def hold(self, adapters: Mapping[str, BankAdapter]) -> None:
        """Hold these adapters, and no others; those whose folder is known are not read again."""
        self.add(adapters)
        self._folders = dict(adapters)

    def add(self, adapters: Mapping[str, BankAdapter]) -> None:
        """Hold these adapters beside those that are held."""
        for name, adapter in adapters.items():
            if self._folders.get(name) != adapter:
                self._read(name, adapter)
                self._folders[name] = adapter

    def adopt(self, name: str, slot: str, increments: int) -> None:
        """Name an adapter that the model already has, such as the one that learns.

        Args:
            slot: peft's name of it.
        """
        self._folders.pop(name, None)
        self._slots[name], self._increments[name] = slot, increments
        self._adopted.add(name)

    def release(self) -> None:
        """Forget the adapters that were adopted; the model keeps them."""
        for name in self._adopted:
            del self._slots[name], self._increments[name]
        self._adopted.clear()

    def open_gates(self, mixes: Sequence[Mix]) -> None:
        """Set the gates of the rows to come, for every pass until they are set again.

        Args:
            mixes: increments of each row; empty: no adapter acts on any row.

        Raises:
            ValueError: a mix names an adapter or an increment that is not held.
        """
        self.gates.by_adapter = self._gates_of(mixes)

    @contextmanager
    def gated(self, mixes: Sequence[Mix]) -> Iterator[None]:
        """Set the gates within the block; those before come back at its end."""
        before = self.gates.by_adapter
        self.open_gates(mixes)
        try:
            yield
        finally:
            self.gates.by_adapter = before

    def _gates_of(self, mixes: Sequence[Mix]) -> dict[str, Tensor]:
        gates: dict[str, Tensor] = {}
        for row, mix in enumerate(mixes):
            for increment in mix:
                name = increment.adapter
                is_known = name in self._folders or name in self._adopted
                if not is_known or not 0 <= increment.number < self._increments[name]:
                    names = sorted({*self._folders, *self._adopted})
                    raise ValueError(
                        f"increment {increment.number} of adapter {name!r} is not held; adapters: "
                        f"{', '.join(names) or 'none'}"
                    )
                slot, count = self._slots[name], self._increments[name]
                if slot not in gates:
                    gates[slot] = torch.zeros(len(mixes), count)
                gates[slot][row, increment.number] += increment.weight
        return {slot: self._spread(slot, gate_BN) for slot, gate_BN in gates.items()}

    def _spread(self, slot: str, gate_BN: Tensor) -> Tensor:
        """Return the gate of every rank from the weights of increments, scaled as peft scales."""
        layer = next(iter(self._layers()))
        rank = layer.lora_A[slot].weight.shape[0]
        gate_BR = gate_BN.repeat_interleave(rank // gate_BN.shape[1], dim=1) * layer.scaling[slot]
        gate_B1R: Tensor = gate_BR[:, None].to(layer.lora_A[slot].weight.device)
        return gate_B1R

    def _read(self, name: str, adapter: BankAdapter) -> None:
        from peft import PeftModel, set_peft_model_state_dict
        from safetensors.torch import load_file

        folder, slot = Path(adapter.folder), self._slots.get(name)
        known = slot is not None and self._increments[name] == adapter.increments
        if known and self._rank_of(slot) == rank_in(folder):
            set_peft_model_state_dict(
                self._model, load_file(folder / ADAPTER_WEIGHTS), adapter_name=slot
            )
            return
        slot = f"bank{len(self._slots)}_{adapter.increments}_{rank_in(folder)}"
        # peft draws a beginning for the weights that it then reads; whoever seeded torch gets the same.
        with torch.random.fork_rng(devices=[]):
            if hasattr(self._model, "peft_config"):
                self._model.load_adapter(folder, adapter_name=slot, is_trainable=False)
            else:
                self._model = PeftModel.from_pretrained(self._model, folder, adapter_name=slot)
                self._model.eval()
        self._gate_layers()
        self._slots[name], self._increments[name] = slot, adapter.increments

    def _rank_of(self, slot: str | None) -> int:
        layer = next(iter(self._layers()))
        return int(layer.lora_A[slot].weight.shape[0])

    def _layers(self) -> Iterator[Any]:
        return (module for module in self._model.modules() if isinstance(module, GatedLinear))

    def _gate_layers(self) -> None:
        from peft.tuners.lora.layer import LoraLayer

        for module in self._model.modules():
            if isinstance(module, LoraLayer) and not isinstance(module, GatedLinear):
                kind: Any = type(module)
                module.__class__ = _gated_kind(kind)
            if isinstance(module, GatedLinear):
                module.gates = self.gates


@cache
def _gated_kind(kind: Any) -> type[nn.Module]:
    """Return a subclass of peft's layer that is gated; repeated calls give the same one."""
    return type(f"Gated{kind.__name__}", (GatedLinear, kind), {"__module__": kind.__module__})


def rank_in(folder: Path) -> int:
    """Return the rank of an adapter's folder, as its config says."""
    return int(json.loads((folder / ADAPTER_CONFIG).read_text())["r"])

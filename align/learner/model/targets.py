"""Layers of a model that an adapter changes: those that the campaign names, or all linear layers.

Architectures differ in the names of their layers and in those that they fuse: GPT-2 has ``c_attn``,
GPT-NeoX ``query_key_value``, Phi-3 ``qkv_proj``. So the default of a campaign, which has the names of
Llama's layers, stands for every linear layer of a model with other names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.config.policy import LoraConfig, PolicyConfig
from align.learner.folder.folder import load_shell
from rollouts.engines.backend import LINEAR_LAYERS
from rollouts.errors import UserError

ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
"""Layers that choose experts, which are not adapted: tokens would move to experts not trained on them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adaptation:
    """Layers that an adapter changes, and their share of the model."""

    targets: tuple[str, ...]
    """Last parts of the layers' names, as peft and vLLM take them."""
    layers: int
    trained: int
    """Number of the adapter's parameters."""
    parameters: int
    """Number of the model's parameters."""
    squared_inputs: int
    """Sum over these layers of the square of their number of inputs."""

    def __str__(self) -> str:
        share = 100 * self.trained / self.parameters
        return (
            f"adapter on {self.layers} layers ({', '.join(self.targets)}): {self.trained:,} parameters, "
            f"{share:.2g}% of the model's {self.parameters:,}"
        )


def adaptation(model: Any, lora: LoraConfig) -> Adaptation:
    """Find the layers that an adapter changes in a model, on any device.

    Raises:
        UserError: a named target is no linear layer of the model.
    """
    targets = target_names(model, lora)
    chosen = {
        name: shape
        for name, shape in linear_layers(model).items()
        if any(name == target or name.endswith(f".{target}") for target in targets)
    }
    # DoRA also learns the length of every output's weights.
    trained = sum(
        lora.rank * (inputs + outputs) + (outputs if lora.dora else 0)
        for inputs, outputs in chosen.values()
    )
    return Adaptation(
        targets=targets,
        layers=len(chosen),
        trained=trained,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        squared_inputs=sum(inputs**2 for inputs, _ in chosen.values()),
    )


def target_names(model: Any, lora: LoraConfig) -> tuple[str, ...]:
    """Choose the layers that get an adapter, by the last part of their names.

    Raises:
        UserError: a named target is no linear layer of the model.
    """
    layers = linear_layers(model)
    names = sorted({name.rpartition(".")[2] for name in layers} - ROUTERS)
    if lora.targets == LINEAR_LAYERS:
        usual = tuple(name for name in LINEAR_LAYERS if name in names)
        return usual if len(usual) == len(names) else tuple(names)
    for target in lora.targets:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            raise UserError(
                f"the model has no linear layer {target!r}",
                where="policy.lora.targets",
                cause=f"the layers of a {type(model).__name__} have other names",
                remedy=f"choose among {', '.join(names)}; or leave targets out, which adapts all of them",
            )
    return lora.targets


def linear_layers(model: Any) -> dict[str, tuple[int, int]]:
    """List the numbers of inputs and outputs of every linear layer except the output head, by name."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    sizes: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if module is head:
            continue
        if isinstance(module, nn.Linear):
            sizes[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            sizes[name] = (module.nx, module.nf)
    return sizes


def has_transposed_layers(model: Any) -> bool:
    """Tell if a model, such as GPT-2, has linear layers that are stored inputs by outputs."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())


def adaptation_of(folder: Path, policy: PolicyConfig) -> Adaptation | None:
    """Find the layers of a model folder that a campaign's adapter changes; None without an adapter."""
    if policy.adapter is None:
        return None
    return adaptation(load_shell(folder, policy).model, policy.adapter)


def served_targets(folder: Path, policy: PolicyConfig) -> tuple[str, ...]:
    """Name the layers whose adapters engines are started for."""
    if policy.lora is None or policy.lora.targets != LINEAR_LAYERS:
        return LINEAR_LAYERS if policy.lora is None else policy.lora.targets
    return target_names(load_shell(folder, policy).model, policy.lora)

"""Adapter that is trained: its place in a model, its files, and its sum with the base's weights.

These functions act on the adapter named `TRAINED` alone. `ReferenceModels` adds earlier snapshots beside
it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align.config.campaign import LoraConfig
from align.learner.folder.folder import ADAPTER_BASE
from align.learner.model.low_rank import speed_up_adapter
from align.learner.model.targets import has_transposed_layers, target_names
from rollouts.engines.stored_tensor import LowRankUpdate

TRAINED = "policy"
"""Name of the adapter that learns."""
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def with_adapter(model: Any, config: LoraConfig) -> Any:
    """Freeze a model under a new adapter whose update is zero."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    chosen = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(target_names(model, config)),
        fan_in_fan_out=has_transposed_layers(model),
        use_rslora=config.rslora,
        use_dora=config.dora,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, chosen, adapter_name=TRAINED)
    speed_up_adapter(adapted)
    return adapted


def causal_of(model: Any) -> Any:
    """Return the causal language model itself, without the wrapper of an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def base_keys(model: Any) -> dict[str, str]:
    """Map the plain model's weights to their names in this model's state, where an adapter adds a level."""
    names = causal_of(model).state_dict(keep_vars=True)
    return {_plain(name): name for name in names if not _of_adapter(name)}


@torch.no_grad()
def reset_adapter(model: Any) -> None:
    """Reset the adapter so that its update of the present base is exactly zero."""
    for _, module in _adapted(model):
        module.reset_lora_parameters(TRAINED, init_lora_weights=True)
        if TRAINED in module.lora_magnitude_vector:
            rows = module.lora_magnitude_vector[TRAINED]
            # DoRA also learns the rows' lengths; with the base's own lengths the update is zero.
            rows.weight.copy_(rows.get_weight_norm(_base_weight(module), torch.zeros(()), 1.0))


@contextmanager
def dropout(model: Any, *, active: bool) -> Iterator[None]:
    """Switch the trained adapter's dropout on or off within the block; that of other adapters is off.

    peft activates the dropout of a new adapter whatever the mode of the model, and switches off that of all
    adapters when it loads one that is not trained. So every pass sets the mode itself. A pass that
    recomputes layers must include its backward pass in the block.
    """
    layers = [module for module in model.modules() if hasattr(module, "lora_dropout")]
    before = [
        (layer, layer.training, {name: d.training for name, d in layer.lora_dropout.items()})
        for layer in layers
    ]
    try:
        for layer in layers:
            _set_modes(
                layer, active, {name: active and name == TRAINED for name in layer.lora_dropout}
            )
        yield
    finally:
        for layer, training, modes in before:
            _set_modes(layer, training, modes)


def _set_modes(layer: Any, training: bool, modes: Mapping[str, bool]) -> None:
    # layer.train() would also change the base layer under it.
    layer.training = training
    for name, module in layer.lora_dropout.items():
        module.train(modes.get(name, False))


def add_frozen_adapter(model: Any, name: str) -> None:
    """Put an adapter like the trained one beside it, which does not learn; one of this name is replaced."""
    if name in model.peft_config:
        model.delete_adapter(name)
    model.add_adapter(name, model.peft_config[TRAINED])
    model.set_adapter(TRAINED)
    for parameter_name, parameter in model.named_parameters():
        if f".{name}." in parameter_name:
            parameter.requires_grad_(False)


def load_adapter(model: Any, folder: Path) -> None:
    """Load the adapter that `save_adapter` wrote; a folder without an adapter resets it."""
    from safetensors.torch import load_file

    if not (folder / WEIGHTS).exists():
        reset_adapter(model)
        return
    set_adapter(model, load_file(folder / WEIGHTS))


def set_adapter(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Load an adapter's tensors, by their names in its file."""
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, dict(tensors), adapter_name=TRAINED)


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapter alone, in peft's format; the same adapter gives the same bytes everywhere.

    The base is named as a neighbour of the adapter's folder, as snapshots of one store are.
    """
    model.save_pretrained(folder, selected_adapters=[TRAINED])
    nested = folder / TRAINED
    for file in nested.iterdir():
        if file.suffix in {".safetensors", ".json"}:
            file.rename(folder / file.name)
        else:
            file.unlink()
    nested.rmdir()
    (folder / "README.md").unlink(missing_ok=True)
    # peft writes the base's absolute path, and sets in an order that every process draws anew.
    stated = json.loads((folder / CONFIG).read_text())
    settings = vars(model.peft_config[TRAINED])
    names = [name for name, value in settings.items() if isinstance(value, set)]
    stated |= {name: sorted(settings[name]) for name in names}
    if stated[ADAPTER_BASE]:
        stated[ADAPTER_BASE] = f"../{Path(stated[ADAPTER_BASE]).name}"
    (folder / CONFIG).write_text(json.dumps(stated, indent=2, sort_keys=True))


@torch.no_grad()
def merged(model: Any) -> dict[str, Tensor]:
    """Return the weights of the plain model that computes the same, by name; tied ones once.

    Adapted layers have new tensors, other layers the base's own.
    """
    weights = base_parameters(model)
    for name, module in _adapted(model):
        base, variant = _base_weight(module), module.lora_variant.get(TRAINED)
        weights[f"{name}.weight"] = (
            base + module.get_delta_weight(TRAINED)
            if variant is None
            else variant.merge_safe(module, TRAINED, base)
        )
    return weights


def base_parameters(model: Any) -> dict[str, Tensor]:
    """Return the weights of the base under the adapter, by the plain model's names; tied ones once."""
    parameters = causal_of(model).named_parameters()
    return {_plain(name): p.detach() for name, p in parameters if not _of_adapter(name)}


def low_rank_updates(model: Any) -> dict[str, LowRankUpdate] | None:
    """Return the low-rank update that the adapter adds to each weight, by the plain model's names.

    None if the adapter does more than add, as DoRA does, or if a layer stores its weight transposed.
    """
    updates: dict[str, LowRankUpdate] = {}
    for name, module in _adapted(model):
        linear = isinstance(module.get_base_layer(), torch.nn.Linear)
        if not linear or TRAINED in module.lora_variant or module.fan_in_fan_out:
            return None
        left, right = module.lora_B[TRAINED].weight, module.lora_A[TRAINED].weight
        updates[f"{name}.weight"] = LowRankUpdate(
            # These are copies, since the optimizer changes its tensors before an engine has read them.
            left=left.detach().to("cpu", torch.float32).numpy().copy(),
            right=right.detach().to("cpu", torch.float32).numpy().copy(),
            scale=float(module.scaling[TRAINED]),
        )
    return updates


def factor_names(model: Any) -> Iterator[tuple[str, str, float]]:
    """Yield the parameter names of the factors A and B of each adapted layer, and their product's scale."""
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            left, right = (f"{name}.lora_{factor}.{TRAINED}.weight" for factor in "BA")
            yield right, left, float(module.scaling[TRAINED])


def _base_weight(module: Any) -> Tensor:
    weight: Tensor = module.get_base_layer().weight.detach()
    return weight


def _adapted(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the layers under the trained adapter, with their names in the plain model."""
    for name, module in causal_of(model).named_modules():
        if hasattr(module, "get_delta_weight"):
            yield name, module


def _plain(name: str) -> str:
    """Return a weight's name in the plain model; peft puts a layer that it wraps one level deeper.

    >>> _plain("model.layers.0.mlp.up_proj.base_layer.weight")
    'model.layers.0.mlp.up_proj.weight'
    """
    return name.replace(".base_layer.", ".")


def _of_adapter(name: str) -> bool:
    """Tell by its name if a tensor belongs to an adapter."""
    return any(part.startswith("lora_") for part in name.split("."))

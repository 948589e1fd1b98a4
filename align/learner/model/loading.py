"""Loading and writing of weights, always through transformers' own mapping.

The names, splits and layouts of a model's parameters may differ from those in its files: the experts of a
mixture are stacked in memory and separate on disk, and GPT-NeoX's output layer has another name.
`align.learner.model.mapping.stored_form` converts parameters to the form of files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align.config.campaign import PolicyConfig
from align.learner.folder.folder import weight_files
from align.learner.model.linear import speed_up
from align.learner.model.mapping import attention_of
from align.learner.model.norm import speed_up_norms
from align.learner.model.rotary import speed_up_rotary
from align.learner.packing import use_packing
from rollouts.errors import RunError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_model(
    folder: Path, config: PolicyConfig, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """Load a causal language model from a folder; its own code runs only if that is allowed."""
    return sped_up(from_folder(folder, config, dtype).to(device))


def load_mapped(folder: Path, config: PolicyConfig) -> PreTrainedModel:
    """Load a model whose weights stay in the folder's files, which are mapped, until they are sharded.

    Matrices have the precision of the files, and vectors float32. A model with buffers of its own that
    depend on the precision is read in float32.
    """
    model = from_folder(folder, config, precision_of(folder))
    if any(b.is_floating_point() and b.dtype != torch.float32 for b in model.buffers()):
        model = from_folder(folder, config, torch.float32)
    for parameter in model.parameters():
        if parameter.ndim < 2:
            parameter.data = parameter.data.float()
    return sped_up(model)


def precision_of(folder: Path) -> torch.dtype:
    """Return the precision that all floating tensors of a folder have; float32 if they differ."""
    from safetensors import safe_open

    kinds: set[str] = set()
    for file in weight_files(folder):
        with safe_open(file, "np") as opened:
            kinds |= {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    return {"BF16": torch.bfloat16, "F16": torch.float16}.get(
        kinds.pop() if len(kinds) == 1 else "", torch.float32
    )


def from_folder(folder: Path, config: PolicyConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Load a model as transformers does, on the host."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation=attention_of(folder, config),
        local_files_only=True,
        trust_remote_code=config.trust_remote_code,
        use_safetensors=True,
    )
    return model


def sped_up(model: PreTrainedModel) -> PreTrainedModel:
    """Give a model the faster layers that fit it, and let it read rows without padding."""
    speed_up(model.eval())
    speed_up_norms(model)
    speed_up_rotary(model)
    use_packing(model)
    return model


def write_model(
    model: Any, folder: Path, state: Mapping[str, Tensor] | None, dtype: torch.dtype
) -> None:
    """Write a model's weights in ``dtype`` and its configs.

    Args:
        state: the weights, by the names of the plain model in memory; None for the model's own.
    """
    if dtype == torch.float32:
        model.save_pretrained(folder, state_dict=state)
        return
    saved = dict(model.named_parameters()) if state is None else state
    rounded = {
        name: tensor.detach().to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in saved.items()
    }
    model.save_pretrained(folder, state_dict=rounded)
    state_precision(folder, dtype)


def state_precision(folder: Path, dtype: torch.dtype) -> None:
    """Write the precision of a folder's weights into its config.

    `save_pretrained` writes the precision in memory there, and readers go by this entry.
    """
    file = folder / "config.json"
    content = json.loads(file.read_text("utf-8")) | {"dtype": str(dtype).removeprefix("torch.")}
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_weights(model: Any, folder: Path, *, mapped: bool = False) -> dict[str, Tensor]:
    """Read a folder's weights, by their names in ``model``; tied ones under every name.

    Args:
        mapped: leave them in the files, which are mapped, in the precision that they have there; else they
            are in float32.

    Raises:
        RunError: the folder has no whole model, or one of another shape.
    """
    if not (folder / "config.json").is_file():
        raise _misfit("config.json", folder.name)
    dtype = precision_of(folder) if mapped else torch.float32
    return _converted(model, folder.name, folder, None, dtype)


def convert_weights(
    model: Any, tensors: Iterable[tuple[str, Tensor]], name: str
) -> dict[str, Tensor]:
    """Convert tensors from the form of a file to that of ``model``, in float32.

    Raises:
        RunError: tensors of the model are missing, or have another shape.
    """
    return _converted(model, name, None, dict(tensors))


def _converted(
    model: Any,
    name: str,
    folder: Path | None,
    tensors: Mapping[str, Tensor] | None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Load a second model of the same class and return its state; files are mapped, not copied."""
    from torch.distributed.fsdp import FSDPModule
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    # Sharding derives a subclass of its own from the model's class.
    plain: Any = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
    fresh, report = plain.from_pretrained(
        folder,
        config=model.config,
        state_dict=tensors,
        dtype=dtype,
        attn_implementation="sdpa" if getattr(model, "_supports_sdpa", False) else "eager",
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    if absent := [*sorted(report["missing_keys"]), *map(str, report["mismatched_keys"])]:
        raise _misfit(", ".join(absent[:3]), name)
    state: dict[str, Tensor] = fresh.state_dict()
    return state


def _misfit(absent: str, name: str) -> RunError:
    return RunError(
        f"the weights do not fit the policy: missing or of another shape: {absent}",
        where=name,
        cause="the snapshot is of another model, or an adapter where a whole model is needed",
    )

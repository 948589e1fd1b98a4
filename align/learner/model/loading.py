"""Loading and writing of weights, always through transformers' own mapping.

A model's parameters need not be named, split or laid out as in its files: experts of a mixture lie stacked
in memory and one by one on disk, GPT-NeoX's output layer has another name. The way back is
`align.learner.model.mapping.stored_form`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align.config.campaign import PolicyConfig
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
    """Load a causal language model from a folder, without code of its own unless allowed."""
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
    ).to(device)
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
        state: the weights, by the names of the plain model in memory; None: the model's own.
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
    # It wrote the precision in memory, and engines and others read the files by this entry.
    file = folder / "config.json"
    content = json.loads(file.read_text("utf-8")) | {"dtype": str(dtype).removeprefix("torch.")}
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_weights(model: Any, folder: Path) -> dict[str, Tensor]:
    """Read a folder's weights in float32, by the names they have in ``model``; tied ones under every name.

    Raises:
        RunError: it holds no whole model, or one of another shape.
    """
    if not (folder / "config.json").is_file():
        raise _misfit("config.json", folder.name)
    return _converted(model, folder.name, folder, None)


def convert_weights(
    model: Any, tensors: Iterable[tuple[str, Tensor]], name: str
) -> dict[str, Tensor]:
    """Bring tensors that are named as in a file to the form they have in ``model``, in float32.

    Raises:
        RunError: tensors of the model are missing, or have another shape.
    """
    return _converted(model, name, None, dict(tensors))


def _converted(
    model: Any, name: str, folder: Path | None, tensors: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Load a second model of the same class and return its state; files are mapped, not copied."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    fresh, report = _plain_class(model).from_pretrained(
        folder,
        config=model.config,
        state_dict=tensors,
        dtype=torch.float32,
        attn_implementation="sdpa" if getattr(model, "_supports_sdpa", False) else "eager",
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    if absent := [*sorted(report["missing_keys"]), *map(str, report["mismatched_keys"])]:
        raise _misfit(", ".join(absent[:3]), name)
    state: dict[str, Tensor] = fresh.state_dict()
    return state


def _plain_class(model: Any) -> Any:
    """Return the class of a model; sharding replaces it by a subclass of its own."""
    from torch.distributed.fsdp import FSDPModule

    return next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))


def _misfit(absent: str, name: str) -> RunError:
    return RunError(
        f"the weights do not fit the policy: missing or of another shape: {absent}",
        where=name,
        cause="the snapshot is of another model, or an adapter where a whole model is needed",
    )

"""Class that transformers loads a folder with, and the form in which that class is stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config.policy import PolicyConfig

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def attention_of(folder: Path, policy: PolicyConfig) -> str:
    """Choose fused attention if the architecture has it, and its own otherwise."""
    return "sdpa" if getattr(model_class(folder, policy), "_supports_sdpa", False) else "eager"


def model_class(folder: Path, policy: PolicyConfig) -> type[PreTrainedModel]:
    """Return the class that transformers loads a folder with.

    Raises:
        ValueError: transformers has no causal language model for it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    config = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=policy.trust_remote_code
    )
    reference = getattr(config, "auto_map", None) or {}
    if policy.trust_remote_code and "AutoModelForCausalLM" in reference:
        remote: type[PreTrainedModel] = get_class_from_dynamic_module(
            reference["AutoModelForCausalLM"], str(folder), local_files_only=True
        )
        return remote
    known = AutoModelForCausalLM._model_mapping
    if type(config) not in known:
        raise ValueError(f"{config.model_type!r} has no causal language model in transformers")
    # Some types map to several classes, of which transformers loads the first.
    listed = known[type(config)]
    chosen: type[PreTrainedModel] = listed[0] if isinstance(listed, tuple) else listed
    return chosen


def stored_form(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name and split a model's parameters as `save_pretrained` writes them.

    Args:
        tensors: parameters on any device, by the names of the plain model in memory.
    """
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(model, dict(tensors)))

"""Weights of a transformers model in an engine: loaded from its folder, and replaced in place.

An update names tensors as a folder's files do. Where the model in memory has the same names and shapes they
are copied one by one; where it fuses or renames them, transformers' own mapping makes the model's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rollouts.engines.stored_tensor import unchanged
from rollouts.engines.transfer.host import from_host
from rollouts.engines.transfer.reload import check_complete, remembered


def load_model(
    model: str, dtype: torch.dtype, device: torch.device, *, trust_remote_code: bool
) -> Any:
    """Load a causal language model from a folder or by its id, for reading alone."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    loaded = AutoModelForCausalLM.from_pretrained(
        model,
        dtype=dtype,
        local_files_only=Path(model).is_dir(),
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
    )
    if (
        loaded.device.type != device.type
    ):  # Some quantised models cannot be moved, and lie there already.
        loaded = loaded.to(device)
    return loaded.eval().requires_grad_(False)


class ReplaceableWeights:
    """Full weights of a model, which updates replace without a second copy where that is possible.

    Args:
        model: the model in memory.
        source: folder or id that it was loaded from.
    """

    def __init__(self, model: Any, source: str) -> None:
        self._model, self._source = model, source
        self._loaded: Mapping[str, Any] = {}

    def load(self, tensors: Mapping[str, Any] | None) -> None:
        """Load all tensors of the model, or None for the files it was started on.

        Raises:
            ValueError: tensors are missing, or have another shape.
        """
        before, self._loaded = self._loaded, {}
        if tensors is None:
            self._copy(self._converted(self._source, None))
            return
        state = self._model.state_dict(keep_vars=True)
        if tensors.keys() <= state.keys():  # Files name the tensors as the model does.
            check_complete((name for name, _ in self._model.named_parameters()), tensors)
            same = unchanged(tensors, before)
            changed = {name: value for name, value in tensors.items() if name not in same}
            for name, tensor in from_host(changed):
                _fill(state[name], tensor, name)
            self._loaded = remembered(tensors)
        else:
            self._copy(self._converted(None, dict(from_host(tensors))))

    def _converted(self, source: str | None, tensors: dict[str, Tensor] | None) -> dict[str, Any]:
        """Load a second model of the same class and return its state; files are mapped, not copied."""
        fresh, report = type(self._model).from_pretrained(
            source,
            config=self._model.config,
            state_dict=tensors,
            dtype=self._model.dtype,
            local_files_only=source is None or Path(source).is_dir(),
            use_safetensors=True,
            output_loading_info=True,
        )
        expected = {name for name, _ in fresh.named_parameters()}
        absent = {*report["missing_keys"], *(str(entry[0]) for entry in report["mismatched_keys"])}
        check_complete(expected, expected - absent)
        state: dict[str, Any] = fresh.state_dict()
        return state

    def _copy(self, state: Mapping[str, Tensor]) -> None:
        parameters = self._model.state_dict(keep_vars=True)
        for name, tensor in state.items():
            _fill(parameters[name], tensor, name)


@torch.no_grad()
def _fill(parameter: Tensor, tensor: Tensor, name: str) -> None:
    if parameter.shape != tensor.shape:
        raise ValueError(
            f"{name} is {tuple(tensor.shape)} in the update, {tuple(parameter.shape)} here"
        )
    parameter.copy_(tensor)

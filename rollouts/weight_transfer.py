"""New weights into a live vLLM, through vLLM's own weight-transfer verbs.

``register_host_backend`` adds the backend ``host`` to vLLM: the trainer's tensors arrive in this
process (from the Ray object store, as read-only views) and are loaded layer by layer between
``start_weight_update`` and ``finish_weight_update``. ``to_host``/``from_host`` turn torch tensors
into arrays that cross Ray without a copy, and back.

The backend guards against three ways of serving wrong weights in silence: a tied output layer that
keeps its packed copy of the old embedding (CPU), experts whose new weights are not packed (CPU), and an
update that lacks some of the tensors, for which vLLM only logs a warning. It works on CPU and on GPU.
vLLM's GPU-to-GPU backends (``ipc``, ``nccl``) speak the same verbs and are not wired up here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

BACKEND = "host"

_BITS = {"bfloat16": "int16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
"""torch dtypes that numpy lacks, and the dtype of equal width that carries their bits."""


class HostTensor(NamedTuple):
    """One tensor in host memory: ``array`` holds the bits, ``dtype`` is torch's name for them."""

    array: np.ndarray[Any, Any]
    dtype: str


def to_host(tensors: Mapping[str, Any]) -> dict[str, HostTensor]:
    """Torch tensors (any device) or numpy arrays by name, as numpy views where that is possible.

    CPU tensors that are contiguous are not copied, so the result must be used up (put into the
    object store) before the next optimizer step writes to them.
    """
    return {name: _to_host(tensor) for name, tensor in tensors.items()}


def from_host(tensors: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """The way back: (name, CPU tensor) pairs that share memory with their arrays.

    Arrays from Ray are read-only, and so must the tensors be treated.
    """
    import torch

    with warnings.catch_warnings():
        # torch warns that writing to a read-only array is undefined; nobody here writes.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        pairs = [(name, _from_host(tensor, torch)) for name, tensor in tensors.items()]
    yield from pairs


def _to_host(tensor: Any) -> HostTensor:
    if isinstance(tensor, HostTensor):
        return tensor
    if isinstance(tensor, np.ndarray):
        return HostTensor(np.ascontiguousarray(tensor), str(tensor.dtype))
    import torch

    name = str(tensor.dtype).removeprefix("torch.")
    data = tensor.detach().to("cpu").contiguous()
    if name in _BITS:
        data = data.view(getattr(torch, _BITS[name]))
    return HostTensor(data.numpy(), name)


def _from_host(tensor: Any, torch: Any) -> torch.Tensor:
    if isinstance(tensor, torch.Tensor):
        return tensor  # type: ignore[no-any-return]
    array, name = tensor if isinstance(tensor, HostTensor) else (tensor, str(tensor.dtype))
    plain = torch.from_numpy(array)
    return plain.view(getattr(torch, name)) if name in _BITS else plain  # type: ignore[no-any-return]


def repack_tied_head(model: torch.nn.Module) -> None:
    """Rebuild the CPU's packed copy of a tied output layer from the embedding it is tied to.

    The reload fills the embedding; the output layer shares its weight, gets no tensor of its own
    and so would keep multiplying with the copy packed from the old weights.
    """
    for module in model.modules():
        tied = type(module).__name__ == "ParallelLMHead" and hasattr(module, "cpu_linear")
        weight: Any = getattr(module, "weight", None)
        if tied and weight is not None and weight.numel():
            method: Any = module.quant_method
            method.process_weights_after_loading(module)


def forget_expert_kernels(model: torch.nn.Module) -> None:
    """Let the CPU's mixture-of-experts layers pack their weights again in the reload that follows.

    vLLM packs them when it sets a layer's kernel up, which it does once: a later update would leave plain
    weights where the kernel reads packed ones.
    """
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        weight: Any = getattr(module, "w13_weight", None)
        if weight is not None and weight.device.type == "cpu" and hasattr(method, "moe_kernel"):
            method.moe_kernel = None


def check_complete(expected: Iterable[str], loaded: Iterable[str]) -> None:
    """Raise ValueError naming the parameters that an update did not fill."""
    missing = sorted(set(expected) - set(loaded))
    if missing:
        listing = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ValueError(
            f"the weight update lacks {len(missing)} of the model's tensors: {listing}"
        )


def register_host_backend() -> None:
    """Make ``weight_transfer_config={"backend": "host"}`` known to vLLM in this process."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, _host_engine_class())


def _host_engine_class() -> type[Any]:
    """The engine class; built late because its base classes live in vllm."""
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )

    @dataclass
    class HostInit(WeightTransferInitInfo):
        """Nothing to set up: tensors arrive as arguments."""

    @dataclass
    class HostUpdate(WeightTransferUpdateInfo):
        """All tensors of the model, or None for the model's own files."""

        tensors: Mapping[str, Any] | None = None

    class HostEngine(WeightTransferEngine[HostInit, HostUpdate]):
        """Loads tensors that are already in this process."""

        init_info_cls = HostInit
        update_info_cls = HostUpdate

        def init_transfer_engine(self, init_info: HostInit) -> None:
            """Remember what a complete update fills, before any reload rearranges the modules."""
            self._expected = {name for name, _ in self.model.named_parameters()}

        def start_weight_update(self) -> None:
            from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

            forget_expert_kernels(self.model)
            initialize_layerwise_reload(self.model)

        def receive_weights(self, update_info: HostUpdate) -> None:
            tensors = update_info.tensors
            pairs = own_files(self) if tensors is None else from_host(tensors)
            try:
                loaded = self.model.load_weights(pairs)
                # Some architectures do not tell what they loaded.
                check_complete(self._expected, self._expected if loaded is None else loaded)
            except Exception:
                # Ends the reload that vLLM has under way, so that a next update can start.
                self.finish_weight_update()
                raise

        def finish_weight_update(self) -> None:
            from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

            finalize_layerwise_reload(self.model, self.model_config)
            repack_tied_head(self.model)

        def shutdown(self) -> None:
            """Nothing is held between updates."""

    return HostEngine


def own_files(engine: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of the files an engine was started on, for going back to its base."""
    from vllm.model_executor.model_loader import get_model_loader

    loader: Any = get_model_loader(engine.vllm_config.load_config)
    return loader.get_all_weights(engine.model_config, engine.model)  # type: ignore[no-any-return]

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

from rollouts.engines.stored_tensor import StoredTensor, StoredTensorReader, unchanged

if TYPE_CHECKING:
    import torch

BACKEND = "host"

_BITS = {"bfloat16": "int16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
"""torch dtypes that numpy lacks, and the dtype of equal width that carries their bits."""


class HostTensor(NamedTuple):
    """One tensor in host memory: ``array`` holds the bits, ``dtype`` is torch's name for them."""

    array: np.ndarray[Any, Any]
    dtype: str


def to_host(tensors: Mapping[str, Any]) -> dict[str, HostTensor | StoredTensor]:
    """Convert torch tensors (any device) or numpy arrays to numpy views where that is possible; stored
    tensors stay what they are.

    CPU tensors that are contiguous are not copied, so the result must be used up (put into the
    object store) before the next optimizer step writes to them.
    """
    return {name: _to_host(tensor) for name, tensor in tensors.items()}


def from_host(tensors: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, CPU tensor) pairs that share memory with their arrays; stored ones are read one by one.

    Arrays from Ray are read-only, and so must the tensors be treated.
    """
    with warnings.catch_warnings():
        # torch warns that writing to a read-only array is undefined; nobody here writes.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        pairs = [(name, _from_host(tensor)) for name, tensor in tensors.items()]
    reader = StoredTensorReader()
    for name, tensor in pairs:
        yield name, reader.read(tensor) if isinstance(tensor, StoredTensor) else tensor


def _to_host(tensor: Any) -> HostTensor | StoredTensor:
    if isinstance(tensor, HostTensor | StoredTensor):
        return tensor
    if isinstance(tensor, np.ndarray):
        return HostTensor(np.ascontiguousarray(tensor), str(tensor.dtype))
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    data = tensor.detach().to("cpu").contiguous()
    if dtype in _BITS:
        data = data.view(getattr(torch, _BITS[dtype]))
    return HostTensor(data.numpy(), dtype)


def _from_host(tensor: Any) -> torch.Tensor | StoredTensor:
    import torch

    if isinstance(tensor, torch.Tensor | StoredTensor):
        return tensor
    array, dtype = tensor if isinstance(tensor, HostTensor) else (tensor, str(tensor.dtype))
    plain = torch.from_numpy(array)
    return plain.view(getattr(torch, dtype)) if dtype in _BITS else plain


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


def skippable(tensors: Mapping[str, Any], loaded: Mapping[str, Any]) -> set[str]:
    """Return the names whose layers an engine may leave alone, as it holds exactly these tensors.

    vLLM loads a layer whole and fuses several of a model's into one, always siblings such as ``q_proj``
    and ``k_proj``. So a tensor is skipped only if nothing below its layer's parent has changed.
    """
    if tensors.keys() != loaded.keys():
        return set()
    same = unchanged(tensors, loaded)
    touched = {_block(name) for name in tensors if name not in same}
    return {name for name in same if _block(name) not in touched}


def remembered(tensors: Mapping[str, Any]) -> dict[str, StoredTensor | None]:
    """Return what `skippable` needs of an update: all names, and the tensors that are parts of files.

    Arrays would keep the update in the object store, and leave no room for the next one.
    """
    return {
        name: tensor if isinstance(tensor, StoredTensor) and tensor.update is None else None
        for name, tensor in tensors.items()
    }


def _block(name: str) -> str:
    """Return the parent of the layer that a tensor belongs to.

    >>> _block("model.layers.0.self_attn.q_proj.weight")
    'model.layers.0.self_attn'
    """
    return ".".join(name.split(".")[:-2])


def has_partial_layer(model: torch.nn.Module) -> bool:
    """Return True if a reload under way has filled some layer in part."""
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    for module in model.modules():
        layer = get_layerwise_info(module)
        if layer.can_load() and 0 < layer.load_numel < (layer.load_numel_total or 0):
            return True
    return False


def check_complete(expected: Iterable[str], loaded: Iterable[str]) -> None:
    """Raise ValueError naming the parameters that an update did not fill."""
    missing = sorted(set(expected) - set(loaded))
    if missing:
        listing = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ValueError(
            f"the weight update lacks {len(missing)} of the model's tensors: {listing}"
        )


def register_host_backend() -> None:
    """Make ``weight_transfer_config={"backend": "host"}`` known to vLLM in this process.

    The engine's classes are made here because their bases live in vllm.
    """
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND in WeightTransferEngineFactory._registry:
        return

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
            self._reload = Reload(self)

        def start_weight_update(self) -> None:
            self._reload.start()

        def receive_weights(self, update_info: HostUpdate) -> None:
            try:
                self._reload.load(update_info.tensors)
            except Exception:
                # Ends the reload that vLLM has under way, so that a next update can start.
                self._reload.finish()
                raise

        def finish_weight_update(self) -> None:
            self._reload.finish()

        def shutdown(self) -> None:
            """Do nothing: an engine holds nothing between updates."""

    WeightTransferEngineFactory.register_engine(BACKEND, HostEngine)


class Reload:
    """Loads weights into a live model layer by layer, and leaves layers alone whose weights are there."""

    def __init__(self, engine: Any) -> None:
        self._engine, self._model = engine, engine.model
        # Taken before any reload rearranges the modules: what a complete update fills.
        self._expected = {name for name, _ in self._model.named_parameters()}
        self._loaded: Mapping[str, Any] = {}
        self._skipped: set[str] = set()

    def start(self) -> None:
        """Let every layer take new weights."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        forget_expert_kernels(self._model)
        initialize_layerwise_reload(self._model)

    def load(self, tensors: Mapping[str, Any] | None) -> None:
        """Load all tensors of the model, or None for the engine's own files.

        Raises:
            ValueError: tensors are missing.
        """
        before, self._loaded = self._loaded, {}
        self._skipped = set() if tensors is None else skippable(tensors, before)
        if tensors is None:
            self._load_all(own_files(self._engine))
            return
        if not self._skipped or not self._load_changed(tensors):
            self._skipped = set()
            self._load_all(from_host(tensors))
        self._loaded = remembered(tensors)

    def finish(self) -> None:
        """Put loaded weights into the form that the model computes with."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self._model, self._engine.model_config)
        if not self._skipped:
            repack_tied_head(self._model)

    def _load_all(self, pairs: Iterator[tuple[str, torch.Tensor]]) -> None:
        loaded = self._model.load_weights(pairs)
        # Some architectures do not tell what they loaded.
        check_complete(self._expected, self._expected if loaded is None else loaded)

    def _load_changed(self, tensors: Mapping[str, Any]) -> bool:
        """Load what is not skipped; False where that filled a layer in part, and all must be loaded."""
        changed = {name: tensor for name, tensor in tensors.items() if name not in self._skipped}
        if changed:
            self._model.load_weights(from_host(changed))
        if not has_partial_layer(self._model):
            return True
        self.finish()
        self.start()
        return False


def own_files(engine: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of the files an engine was started on, for going back to its base."""
    from vllm.model_executor.model_loader import get_model_loader

    loader: Any = get_model_loader(engine.vllm_config.load_config)
    return loader.get_all_weights(engine.model_config, engine.model)  # type: ignore[no-any-return]

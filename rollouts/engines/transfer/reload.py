"""Weights into a live vLLM model, layer by layer.

The reload is guarded against three ways of serving wrong weights in silence: a tied output layer that keeps
its packed copy of the old embedding (CPU), experts whose new weights are not packed (CPU), and an update
that lacks some of the tensors, for which vLLM only logs a warning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rollouts.engines.stored_tensor import StoredTensor, unchanged
from rollouts.engines.transfer.host import from_host

if TYPE_CHECKING:
    import torch


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


class Reload:
    """Loads weights into a live model layer by layer, and leaves layers alone whose weights are there."""

    def __init__(self, engine: Any) -> None:
        self._engine, self._model = engine, engine.model
        # Taken before any reload rearranges the modules: what a complete update fills.
        self._expected = {name for name, _ in self._model.named_parameters()}
        self._loaded: Mapping[str, Any] = {}
        self._skipped: set[str] = set()
        self._filled: set[str] = set()

    def start(self) -> None:
        """Let every layer take new weights."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self._filled = set()
        self._skipped = set()
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
            self.take(own_files(self._engine))
        elif not self._skipped or not self._load_changed(tensors):
            self._skipped = set()
            self.take(from_host(tensors))
        if not self._skipped:
            self.check_whole()
        self._loaded = {} if tensors is None else remembered(tensors)

    def take(self, pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load some of the tensors; `check_whole` tells when they were all."""
        loaded = self._model.load_weights(iter(pairs))
        # Some architectures do not tell what they loaded.
        self._filled |= self._expected if loaded is None else set(loaded)

    def check_whole(self) -> None:
        """Raise ValueError unless every parameter was filled since `start`."""
        check_complete(self._expected, self._filled)

    def finish(self) -> None:
        """Put loaded weights into the form that the model computes with."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self._model, self._engine.model_config)
        if not self._skipped:
            repack_tied_head(self._model)

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

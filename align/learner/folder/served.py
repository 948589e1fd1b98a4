"""Checks by the backend of the engines that they can serve a model."""

from __future__ import annotations

from align.learner.folder.folder import ModelFolder
from align.learner.model.mapping import model_class
from rollouts.engines import backend_named
from rollouts.engines.backend import ServedModel


def is_served(folder: ModelFolder) -> None:
    """Refuse an architecture or sizes that the backend cannot serve on the engines' device."""
    backend_named(folder.backend).check_model(_served_model(folder))


def takes_adapters(folder: ModelFolder) -> None:
    """Refuse ``serve: adapter`` for an architecture whose adapters the backend cannot serve."""
    lora = folder.policy.lora
    if lora is not None and lora.serve == "adapter":
        backend_named(folder.backend).check_adapters(_served_model(folder))


def _served_model(folder: ModelFolder) -> ServedModel:
    has_own_code = folder.policy.trust_remote_code and folder.raw.get("auto_map")
    return ServedModel(
        folder=folder.path,
        device=folder.device,
        kind=model_class(folder.path, folder.policy),
        config=folder.config,
        own_architectures=folder.architectures if has_own_code else (),
        trust_remote_code=folder.policy.trust_remote_code,
    )

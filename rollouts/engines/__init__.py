"""Engines that sample and score, behind one protocol; `ENGINES` lists the backends by name."""

from __future__ import annotations

from rollouts.engines.backend import EngineSpec
from rollouts.engines.transformers import TransformersConfig
from rollouts.engines.vllm import VLLMConfig
from rollouts.errors import UserError, nearest

ENGINES: dict[str, type[EngineSpec]] = {
    "vllm": VLLMConfig,
    "transformers": TransformersConfig,
}
"""Backends by the name in ``rollouts.backend``; their libraries are imported when an engine starts."""

DEFAULT_BACKEND = "vllm"


def backend_named(name: str) -> type[EngineSpec]:
    """Return a backend.

    Raises:
        UserError: there is none of that name.
    """
    if name not in ENGINES:
        raise UserError(
            f"there is no engine backend {name!r}",
            where="rollouts.backend",
            remedy=nearest(name, list(ENGINES)),
        )
    return ENGINES[name]

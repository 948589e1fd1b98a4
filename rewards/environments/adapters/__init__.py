"""Environments of other packages, by the scheme of their names in a campaign file."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from rewards.environments.adapters.base import Adapter

PLACES = {
    "verifiers": "rewards.environments.adapters.verifiers:VerifiersAdapter",
    "openenv": "rewards.environments.adapters.openenv:OpenEnvAdapter",
}
"""Adapters by scheme. One is imported, and its package, when a name asks for it."""


def _loader(place: str) -> Callable[[], Adapter]:
    def load() -> Adapter:
        module, _, name = place.partition(":")
        adapter: Adapter = getattr(import_module(module), name)()
        return adapter

    return load


ADAPTERS: dict[str, Callable[[], Adapter]] = {
    scheme: _loader(place) for scheme, place in PLACES.items()
}

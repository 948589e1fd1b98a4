"""Environments of other packages, by the scheme of their names in a campaign file."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from rewards.environments.adapters.base import EnvironmentAdapter

PLACES = {
    "verifiers": "rewards.environments.adapters.verifiers:VerifiersAdapter",
    "openenv": "rewards.environments.adapters.openenv:OpenEnvAdapter",
}
"""Adapters by scheme. One is imported, and its package, when a name asks for it."""


def _loader(target: str) -> Callable[[], EnvironmentAdapter]:
    def load() -> EnvironmentAdapter:
        module, _, name = target.partition(":")
        adapter: EnvironmentAdapter = getattr(import_module(module), name)()
        return adapter

    return load


ADAPTERS: dict[str, Callable[[], EnvironmentAdapter]] = {
    scheme: _loader(target) for scheme, target in PLACES.items()
}

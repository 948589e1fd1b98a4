"""Worlds of the twelve scenarios of lifelong learning, generated from a seed by code alone.

A line of `SCENARIOS` names the function that builds a scenario's world; importing this package costs
nothing. `keel demo scenario NAME FOLDER` writes a world with its base model.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from align.data.scenarios.world import World


class Scenario(NamedTuple):
    """One scenario."""

    builder: str
    """Function that builds its world from a seed, as ``module:function``."""
    metric: str
    """Metric of its rounds in the words of its field."""

    def world(self, seed: int) -> World:
        """Build the world."""
        module, _, function = self.builder.partition(":")
        build: Callable[[int], World] = getattr(import_module(module), function)
        return build(seed)


_HERE = "align.data.scenarios"
SCENARIOS: dict[str, Scenario] = {
    "domains": Scenario(f"{_HERE}.texts:domains", "log-likelihood, nats"),
    "languages": Scenario(f"{_HERE}.texts:languages", "log-likelihood, nats"),
    "temporal": Scenario(f"{_HERE}.temporal:world", "exact match"),
    "classification": Scenario(f"{_HERE}.classification:world", "accuracy"),
    "entities": Scenario(f"{_HERE}.extraction:entities", "exact match"),
    "relations": Scenario(f"{_HERE}.extraction:relations", "exact match"),
    "translation": Scenario(f"{_HERE}.translation:world", "exact match"),
    "instructions": Scenario(f"{_HERE}.instructions:world", "exact match"),
    "editing": Scenario(f"{_HERE}.editing:world", "efficacy"),
    "alignment": Scenario(f"{_HERE}.preferences:world", "preferred replies"),
}
"""Every scenario by name, in the order of the surveys: pre-training, fine-tuning, outside knowledge."""

"""Worlds of the twelve scenarios of lifelong learning, generated from a seed by code alone.

A line of `SCENARIOS` names the function that builds a scenario's world; importing this package costs
nothing. `keel demo scenario NAME FOLDER` writes a world with its base model.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from align.data.scenarios.world import World


class Scenario(NamedTuple):
    """One scenario."""

    builder: str
    """Function that builds its world from a seed, as ``module:function``."""
    metric: str
    """Metric of its rounds in the words of its field."""
    real: str = ""
    """Function that builds it from a folder of real data, or returns None where the folder has none."""
    in_weights: str = ""
    """Campaign file whose rounds learn the same facts into the weights, where its own bring documents."""
    real_campaign: str = ""
    """Campaign file over real data, where its rounds have other names there."""

    def world(self, seed: int, data: Path | None = None) -> World:
        """Build the world, from real data where a folder has it."""
        real = None if data is None else self._real(data, seed)
        if real is not None:
            return real
        build: Callable[[int], World] = _function(self.builder)
        return build(seed)

    def has_real(self, data: Path) -> bool:
        """Tell if a folder has real data of the scenario."""
        return self._real(data, 0) is not None

    def _real(self, data: Path, seed: int) -> World | None:
        if not self.real:
            return None
        build: Callable[[Path, int], World | None] = _function(self.real)
        return build(data, seed)


def _function(reference: str) -> Callable[..., Any]:
    module, _, name = reference.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


_HERE = "align.data.scenarios"
SCENARIOS: dict[str, Scenario] = {
    "domains": Scenario(
        f"{_HERE}.texts:domains",
        "log-likelihood, nats",
        f"{_HERE}.texts:real_domains",
        real_campaign="domains-real",
    ),
    "languages": Scenario(f"{_HERE}.texts:languages", "log-likelihood, nats"),
    "temporal": Scenario(f"{_HERE}.facts.temporal:world", "exact match"),
    "classification": Scenario(
        f"{_HERE}.classification:world", "accuracy", f"{_HERE}.classification:real"
    ),
    "entities": Scenario(f"{_HERE}.extraction:entities", "span F1"),
    "relations": Scenario(f"{_HERE}.extraction:relations", "triples F1"),
    "translation": Scenario(f"{_HERE}.translation:world", "BLEU"),
    "instructions": Scenario(f"{_HERE}.instructions:world", "exact match"),
    "editing": Scenario(f"{_HERE}.facts.editing:world", "efficacy"),
    "alignment": Scenario(f"{_HERE}.preferences:world", "preferred replies"),
    "retrieval": Scenario(
        f"{_HERE}.facts.documents:world", "exact match", in_weights="retrieval-in-weights"
    ),
    "tools": Scenario(f"{_HERE}.facts.tools:world", "success rate"),
}
"""Every scenario by name, in the order of the surveys: pre-training, fine-tuning, outside knowledge."""

"""Construction of a round's retention methods, on every rank of its learner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.retention import METHODS
from align.retention.base import Ids, RetentionMethod

if TYPE_CHECKING:
    from align.learner.penalty import LearnerView


@dataclass(frozen=True, kw_only=True, slots=True)
class RetentionMethods:
    """A `MakePenalties` that can be sent to other processes, and builds the methods of the round."""

    artifacts: Mapping[str, Path] = field(default_factory=dict)
    """Verified file that a method wrote after an earlier round, by the method's name."""
    retired: Mapping[str, AbstractSet[Ids] | None] = field(default_factory=dict)
    """Prompts of earlier rounds that later ones override, as tokens, by round; None: the whole round."""

    def __call__(self, view: LearnerView) -> Sequence[RetentionMethod[Any]]:
        """Build every method of the round in the order of its settings, and what its replay rehearses."""
        artifacts = {name: view.place_of(path) for name, path in self.artifacts.items()}
        methods = [
            method_class(config.name)(config, view, artifacts.get(config.name))
            for config in view.spec.methods
        ]
        for method in methods:
            method.leave_out(self.retired)
        if weights := view.spec.replay.likelihoods:
            from align.retention.rehearsal import Rehearsal, RehearsalConfig

            methods.append(Rehearsal(RehearsalConfig(weights=weights), view))
        return methods


def method_class(name: str) -> type[RetentionMethod[Any]]:
    """Return the class of a registered method."""
    module, _, attribute = METHODS[name].partition(":")
    method: type[RetentionMethod[Any]] = getattr(import_module(module), attribute)
    return method

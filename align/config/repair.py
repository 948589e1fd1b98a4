"""Settings of the repairs that are tried before a round is rejected."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer

from align.settings import Settings

Rung = TypeVar("Rung")


Switch = Annotated[
    Rung | None,
    BeforeValidator(
        lambda value: {True: {}, False: None}[value] if isinstance(value, bool) else value
    ),
]
"""A rung of the ladder: ``true`` for its defaults, ``false`` for none, or its settings."""


class InterpolateConfig(Settings):
    """Weights on the straight line from the parent to the candidate, WiSE-FT: arXiv 2109.01903."""

    steps: Annotated[int, Field(ge=1, le=8)] = 3
    """Number of points in a bisection for the largest share of the way that passes. Each costs a snapshot,
    a measurement of all suites and a decision of the gate."""


class DistilConfig(Settings):
    """Distillation steps from the candidate toward the snapshots that could do what was lost."""

    steps: Annotated[int, Field(ge=1)] = 15
    """Number of learner steps."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of a step's completions for prompts of the rounds that lost. On the round's own prompts, which
    are the rest, the candidate is its own teacher."""
    lr: Annotated[float, Field(gt=0, le=1)] | None = None
    """Learning rate of the distillation; None: half of the round's."""


class RepairConfig(Settings):
    """Ladder of repairs, whose rungs are tried from top to bottom until a candidate passes the gate.

    It is off by default: each try takes time and one more decision, over which ``gate.alpha`` is spread. It
    repairs a policy that gained at its round's target and lost something else. It does not repair a reward
    model, a round in ``observe`` mode, or a candidate that was refused for how it was trained.
    """

    index: bool = False
    """Keep the documents that the round added, and give up its weights."""
    interpolate: Switch[InterpolateConfig] = None
    """Move the weights part of the way back to the parent; ``true`` or settings."""
    distil: Switch[DistilConfig] = None
    """Learn what was lost again, from the snapshots that could do it; ``true`` or settings."""
    rerun: bool = False
    """Train the round again from its parent, with twice the replay and half the learning rate."""
    keep: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Smallest share of the failed candidate's gain at the target that a repaired candidate must keep; one
    that passes the gate with less is not taken."""

    @model_serializer(mode="wrap")
    def _without_index(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out unset ``index``: stores that are older than the setting have no such key."""
        values: dict[str, Any] = dump(self)
        if not self.index:
            values.pop("index", None)
        return values

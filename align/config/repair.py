"""Fields of a campaign file that say what is tried before a round is rejected."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field

from align.settings import Settings

Rung = TypeVar("Rung")


def _switched(value: Any) -> Any:
    """Expand ``true``, which is short for a rung with its defaults, and ``false`` for none."""
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


Switch = Annotated[Rung | None, BeforeValidator(_switched)]


class InterpolateConfig(Settings):
    """Weights on the straight line from the parent to the candidate, WiSE-FT: arXiv 2109.01903."""

    steps: Annotated[int, Field(ge=1, le=8)] = 3
    """Points of a bisection for the largest share of the way that passes. Each costs a measurement of
    all suites, a snapshot and a look."""


class DistilConfig(Settings):
    """A few steps from the candidate, drawn back to the owners where something was lost."""

    steps: Annotated[int, Field(ge=1)] = 15
    """Learner steps."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of a step's completions for prompts of what was lost. On the others, the round's own
    prompts, the candidate is its own teacher."""
    lr: Annotated[float, Field(gt=0, le=1)] | None = None
    """Learning rate of the distillation; None: half of the round's."""


class RepairConfig(Settings):
    """The ladder: its rungs are tried from top to bottom until a candidate passes the gate.

    Off by default, because every try takes time and a look, over which ``gate.alpha`` is spread. Repaired
    are rounds of a policy that gained at their target and lost something else; never a reward model,
    nothing in ``observe`` mode, and no candidate that is objected to for how it was trained.
    """

    interpolate: Switch[InterpolateConfig] = None
    """``true`` or settings: go part of the way back to the parent."""
    distil: Switch[DistilConfig] = None
    """``true`` or settings: learn again, from the snapshots that could do it, what was lost."""
    rerun: bool = False
    """The round again from its parent, with twice the replay and half the learning rate."""
    keep: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Least share of the failed candidate's gain at the target that a repaired one must keep; one
    that passes the gate with less is not taken."""

"""How an accepted candidate came to be, where the first one was refused."""

from __future__ import annotations

from collections.abc import Sequence

from align.store.repairs import RepairStep


def accepted_repair(steps: Sequence[RepairStep]) -> RepairStep | None:
    """The repair that took the failed candidate's place; None where nothing had to be or could be."""
    return next((step for step in steps if step.accepted and step.rung != "round"), None)


def repaired_by(steps: Sequence[RepairStep]) -> str:
    """For a person, such as ``repaired by distillation, 15 steps (92% of the target gain kept)``."""
    step = accepted_repair(steps)
    if step is None:
        return ""
    return f"repaired by {step.told} ({100 * step.kept:.0f}% of the target gain kept)"

"""Record of a round's repair: every candidate, the first included, and its decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from rollouts.types import SnapshotId

RungName = Literal["interpolate", "distil", "rerun"]
KEY = "repairs"
"""Key under which a round's report lists its candidates, if there was more than one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Origin of a repaired candidate."""

    rung: RungName
    of: SnapshotId
    """The failed candidate."""
    share: float | None = None
    """Share of the way from the parent to the failed candidate; None off that line."""
    told: str
    """Words for a person, such as ``interpolation at 0.5``."""

    @property
    def label(self) -> str:
        """A name for its files, distinct within the round."""
        return self.rung if self.share is None else f"{self.rung}-{self.share:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairStep:
    """One candidate before the gate."""

    rung: RungName | Literal["round"]
    """``round`` is the round itself, the candidate that failed."""
    told: str
    candidate: SnapshotId
    look: int
    """Decision of the campaign that it was."""
    outcome: Literal["accepted", "rejected", "too_few_items", "void", "too_little_kept"]
    """The gate's; ``too_little_kept`` where it passed with too small a share of the gain."""
    kept: float
    """Gain at the target, as a share of the failed candidate's."""
    reasons: tuple[str, ...]
    seconds: float | None = None
    """Seconds to make, publish, measure and judge it; None of the round itself."""

    @property
    def accepted(self) -> bool:
        """True if it could take the failed candidate's place."""
        return self.outcome == "accepted"

    @property
    def sentence(self) -> str:
        """Sentence about the candidate, for a person."""
        gain = f"{100 * self.kept:.0f}% of the target gain"
        if self.accepted:
            return f"{self.told}: accepted with {gain}"
        if self.outcome == "too_little_kept":
            return f"{self.told}: passed the gate with only {gain}"
        what = self.outcome.replace("_", " ")
        return f"{self.told}: {what} because {'; '.join(self.reasons)}"


_STEPS = TypeAdapter(tuple[RepairStep, ...])


def repairs_of(report: Mapping[str, Any] | None) -> tuple[RepairStep, ...]:
    """Read the candidates in a round's report, in order; none where nothing was repaired."""
    return _STEPS.validate_python((report or {}).get(KEY, ()))


def with_repairs(report: Mapping[str, Any], steps: tuple[RepairStep, ...]) -> dict[str, Any]:
    """Return a verdict's report with all candidates; where nothing was repaired the report itself."""
    return {**report, KEY: _STEPS.dump_python(steps, mode="json")} if steps else dict(report)


def accepted_repair(steps: Sequence[RepairStep]) -> RepairStep | None:
    """Return the repair that replaced the failed candidate; None if there was none."""
    return next((step for step in steps if step.accepted and step.rung != "round"), None)


def repaired_by(steps: Sequence[RepairStep]) -> str:
    """Describe the repair, such as ``repaired by distillation, 15 steps (92% of the target gain kept)``."""
    step = accepted_repair(steps)
    if step is None:
        return ""
    return f"repaired by {step.told} ({100 * step.kept:.0f}% of the target gain kept)"

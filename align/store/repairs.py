"""Record of a round's candidates: what each was made of, and its decision if there were several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, TypeAdapter

from rollouts.types import SnapshotId

RungName = Literal["index", "interpolate", "distil", "rerun", "merge", "run"]
"""Rung of the ladder of repairs; ``merge`` and ``run`` are the round's own merge and its further runs."""
KEY = "repairs"
"""Key under which a round's report lists its candidates, if there was more than one."""
MERGE = "merge"
"""Key under which a round's report says what its candidate was merged of."""
Described = Annotated[str, Field(validation_alias=AliasChoices("description", "told"))]
"""Description, which records of older stores call ``told``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Origin of a candidate that is not simply what the round trained, such as a repaired one."""

    rung: RungName
    of: SnapshotId
    """Snapshot that it was made of: the failed candidate of a repair."""
    share: float | None = None
    """Share of the way from the parent to the failed candidate; None off that line."""
    description: Described
    """Words for a person, such as ``interpolation at 0.5``."""

    @property
    def label(self) -> str:
        """A name for its files, distinct within the round."""
        return self.rung if self.share is None else f"{self.rung}-{self.share:g}"

    @property
    def title(self) -> str:
        """A name for people who watch."""
        return self.rung

    @property
    def recorded(self) -> dict[str, Any]:
        """Entry of a snapshot's manifest."""
        return {"repair": asdict(self)}


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtraRun(Origin):
    """Origin of weights that another run of the round trains, from ``of``, its parent."""

    rung: RungName = "run"
    number: int
    """Number of the run in the round; the first has no such record."""

    @property
    def label(self) -> str:
        return f"run-{self.number}"

    @property
    def title(self) -> str:
        return f"run {self.number}"

    @property
    def recorded(self) -> dict[str, Any]:
        return {"run": asdict(self)}


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeOrigin(Origin):
    """Origin of a candidate that was merged; ``of`` is what the round trained, in its first run."""

    rung: RungName = "merge"
    merger: str
    """Registered name of the merger."""
    anchor: SnapshotId
    """Snapshot that the trained weights were merged with."""
    runs: tuple[SnapshotId, ...]
    """Trained weights of all runs."""
    past: tuple[SnapshotId, ...] = ()
    """Snapshots of earlier rounds whose changes were merged too, oldest first."""
    block_shares: tuple[float, ...] = ()
    """Share of each block of layers, of a merger that has several."""

    @property
    def recorded(self) -> dict[str, Any]:
        return {MERGE: asdict(self)}

    @property
    def sentence(self) -> str:
        """Sentence about the merge, for a person."""
        trained = ", ".join(snapshot[:16] for snapshot in self.runs)
        return (
            f"The round's candidate is a merge: {self.description}; what was trained is {trained}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairStep:
    """One candidate before the gate."""

    rung: RungName | Literal["round"]
    """``round`` is the round itself, the candidate that failed; ``merge`` a point of its merge."""
    description: Described
    candidate: SnapshotId
    look: int
    """Decision of the campaign that it was."""
    outcome: Literal["accepted", "rejected", "too_few_items", "void", "too_little_kept"]
    """The gate's; ``too_little_kept`` where it passed with too small a share of the gain."""
    kept: float
    """Gain at the target, as a share of that of the round's first candidate."""
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
            return f"{self.description}: accepted with {gain}"
        if self.outcome == "too_little_kept":
            return f"{self.description}: passed the gate with only {gain}"
        what = self.outcome.replace("_", " ")
        return f"{self.description}: {what} because {'; '.join(self.reasons)}"


_STEPS = TypeAdapter(tuple[RepairStep, ...])
_MERGE = TypeAdapter(MergeOrigin)


def repairs_of(report: Mapping[str, Any] | None) -> tuple[RepairStep, ...]:
    """Read the candidates in a round's report, in order; none where nothing was repaired."""
    return _STEPS.validate_python((report or {}).get(KEY, ()))


def with_repairs(report: Mapping[str, Any], steps: tuple[RepairStep, ...]) -> dict[str, Any]:
    """Return a verdict's report with all candidates; where nothing was repaired the report itself."""
    return {**report, KEY: _STEPS.dump_python(steps, mode="json")} if steps else dict(report)


def merge_of(report: Mapping[str, Any] | None) -> MergeOrigin | None:
    """Read from a round's report what its candidate was merged of; None if nothing was merged."""
    entry = (report or {}).get(MERGE)
    return None if entry is None else _MERGE.validate_python(entry)


def with_merge(report: Mapping[str, Any], origin: MergeOrigin | None) -> dict[str, Any]:
    """Return a verdict's report with what its candidate was merged of."""
    return (
        dict(report)
        if origin is None
        else {**report, MERGE: _MERGE.dump_python(origin, mode="json")}
    )


def accepted_repair(steps: Sequence[RepairStep]) -> RepairStep | None:
    """Return the repair that took the failed candidate's place; None if there is none."""
    repairs = (step for step in steps if step.rung not in ("round", "merge"))
    return next((step for step in repairs if step.accepted), None)


def repaired_by(steps: Sequence[RepairStep]) -> str:
    """Say ``repaired by distillation, 15 steps (92% of the target gain kept)`` or the like."""
    step = accepted_repair(steps)
    if step is None:
        return ""
    return f"repaired by {step.description} ({100 * step.kept:.0f}% of the target gain kept)"

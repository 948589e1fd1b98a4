"""Tried repairs, as the steps of the ladder read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.round.repair.damage import gained, lost
from align.store.repairs import Origin, RepairStep

if TYPE_CHECKING:
    from align.round.plan import RoundOutcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """A repaired candidate and what the gate said of it."""

    origin: Origin
    outcome: RoundOutcome
    kept: float
    """Gain at the target, as a share of the failed candidate's."""
    keep: float
    """The share that it must keep."""
    seconds: float

    @property
    def lost(self) -> bool:
        """Something that must be retained was not shown to be."""
        return bool(lost(self.outcome.verdict))

    @property
    def gained(self) -> bool:
        """The target was shown to be better, and by enough of what it was."""
        return gained(self.outcome.verdict) and self.kept >= self.keep

    @property
    def passed(self) -> bool:
        """True if it can take the failed candidate's place."""
        return self.outcome.verdict.accepted and self.gained

    @property
    def step(self) -> RepairStep:
        """Entry of the try in the round's record."""
        verdict = self.outcome.verdict
        little = verdict.accepted and not self.gained
        return RepairStep(
            rung=self.origin.rung,
            description=self.origin.description,
            candidate=self.outcome.candidate,
            look=self.outcome.look,
            outcome="too_little_kept" if little else verdict.outcome,
            kept=self.kept,
            reasons=verdict.reasons,
            seconds=self.seconds,
        )

"""Sealed suites as they stand: what their openings showed, and when the next one is due."""

from __future__ import annotations

from dataclasses import dataclass

from align.gate.evidence import Evidence
from align.gate.sealed import Opening, openings
from rollouts.errors import KeelError


@dataclass(frozen=True, kw_only=True, slots=True)
class Seal:
    """One sealed suite."""

    suite: str
    every: int
    """Accepted rounds from one opening to the next."""
    budget: float
    """Loss allowed against the start."""
    openings: tuple[Opening, ...]
    accepted_to_go: int
    """Rounds that are to be accepted before the next opening; 0: it is due now."""

    @property
    def state(self) -> str:
        """State in words after the last opening."""
        if not self.openings:
            return "not opened yet"
        last = self.openings[-1]
        return f"{last.outcome.replace('_', ' ')} when opened after round {last.round}"


def seals_of(evidence: Evidence) -> tuple[Seal, ...]:
    """List every sealed suite of the campaign file. Openings whose results are gone are left out."""
    try:
        opened = openings(evidence)
    except KeelError:
        opened = []
    accepted = len(evidence.accepted("policy"))
    return tuple(
        Seal(
            suite=spec.name,
            every=spec.every,
            budget=evidence.config.gate.budget_of(spec),
            openings=(past := tuple(opening for opening in opened if opening.suite == spec.name)),
            accepted_to_go=max(0, spec.every * (len(past) + 1) - accepted),
        )
        for spec in evidence.config.suites
        if spec.role == "sealed" and spec.every
    )

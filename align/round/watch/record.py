"""Reward-hacking signals and canary results of one attempt (`signals.json`).

The verdict holds what was held against the candidate; this file holds all that was said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from align.round.watch.detectors import Signal
from align.store.durable import write_atomic
from align.store.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class CanaryRecord:
    """A canary that a reward fell for on at least one prompt."""

    reward: str
    canary: str
    fooled: int
    """Prompts on which it got no less than real answers do."""
    prompts: int
    """Prompts on which it was tried."""
    score: float
    """The highest it got."""
    refused: bool
    """True if the reward fell for it on more prompts than the round allows."""

    @property
    def sentence(self) -> str:
        """Sentence about the canary, for a person."""
        return (
            f"reward {self.reward} falls for the canary {self.canary}: on {self.fooled} of "
            f"{self.prompts} prompts it scores no less than the policy's own answers do, up to "
            f"{self.score:.3g}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchRecord:
    """The signals of one candidate's steps, and what its rewards fell for."""

    signals: tuple[Signal, ...] = ()
    """Each as it was when its detector first spoke."""
    canaries_tried: tuple[str, ...] = ()
    """Rewards that canaries were put before."""
    before: tuple[CanaryRecord, ...] = ()
    """Canaries that were fallen for before the first step."""
    after: tuple[CanaryRecord, ...] = ()
    """Canaries put before the rewards after the last step, before the verdict."""
    objections: tuple[str, ...] = ()
    """Sentences that keep the candidate out, whatever its suites say."""

    def save(self, folder: Path) -> None:
        """Write it beside the attempt's metrics, whole or not at all."""
        content = json.dumps(asdict(self), indent=2, sort_keys=True)
        write_atomic(RunFolder(folder).signals, content.encode())

    @classmethod
    def load(cls, folder: Path) -> WatchRecord:
        """Load the record of an attempt; an empty one where nothing was written, or what was is
        damaged."""
        try:
            plain: Mapping[str, Any] = json.loads(RunFolder(folder).signals.read_text())
            return _RECORD.validate_python(plain)
        except (OSError, ValueError):
            return cls()

    def remarks(self) -> list[str]:
        """List those of `lines` that are held against nobody."""
        sentences = [*(s.sentence for s in self.signals), *(c.sentence for c in self.after)]
        objected = [s for s in sentences if any(s in objection for objection in self.objections)]
        return [line for line in self.lines() if not any(s in line for s in objected)]

    def lines(self) -> list[str]:
        """List everything in sentences, to be read by a person."""
        sentences = [f"step {s.step + 1}: {s.sentence} ({s.name})" for s in self.signals]
        return sentences + [
            f"{when} the round: {canary.sentence}"
            for when, canaries in (("before", self.before), ("after", self.after))
            for canary in canaries
            if canary.refused
        ]


_RECORD = TypeAdapter(WatchRecord)

"""What was noticed of a round while it ran: one file in the folder of its attempt.

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

FILE = "signals.json"


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
    """On more prompts than the round allows."""

    @property
    def sentence(self) -> str:
        """For a person."""
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
    """And before the verdict."""
    objections: tuple[str, ...] = ()
    """Sentences that keep the candidate out, whatever its suites say."""

    def save(self, folder: Path) -> None:
        """Write it beside the attempt's metrics, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f"{FILE}.part"
        draft.write_text(json.dumps(asdict(self), indent=2, sort_keys=True))
        draft.replace(folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> WatchRecord:
        """That of an attempt; an empty one where nothing was written, or what was is damaged."""
        try:
            plain: Mapping[str, Any] = json.loads((folder / FILE).read_text())
            return _RECORD.validate_python(plain)
        except (OSError, ValueError):
            return cls()

    def remarks(self) -> list[str]:
        """Those of `lines` that are held against nobody."""
        return [line for line in self.lines() if not any(s in line for s in self._held())]

    def _held(self) -> list[str]:
        """Sentences behind the objections."""
        said = [signal.sentence for signal in self.signals] + [one.sentence for one in self.after]
        return [sentence for sentence in said if any(sentence in one for one in self.objections)]

    def lines(self) -> list[str]:
        """To be read by a person."""
        said = [f"step {s.step + 1}: {s.sentence} ({s.name})" for s in self.signals]
        return said + [
            f"{when} the round: {one.sentence}"
            for when, found in (("before", self.before), ("after", self.after))
            for one in found
            if one.refused
        ]


_RECORD = TypeAdapter(WatchRecord)

"""Suites of the likelihood of given text: windows of a file, or the examples that a round holds out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from align.config.gate import SuiteConfig
from align.gate.measurement.results import ItemResults
from align.gate.measurement.samples import checked
from align.gate.suites.kinds.sequences import SequenceSuite
from align.gate.suites.scale import ScoreScale
from align.gate.suites.sequences import text_sequences
from align.gate.suites.suite import SuiteEntry
from rollouts.types import Score, SnapshotId

if TYPE_CHECKING:
    from rollouts.engines.protocol import RolloutEngine
    from rollouts.prompts import PromptEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class LikelihoodSuite(SequenceSuite):
    """Given texts, each worth its mean logprob per token, in nats."""

    kind: ClassVar[str] = "likelihood"
    scale: ClassVar[ScoreScale] = ScoreScale(bounded=False, unit="nats")

    @classmethod
    def of_entry(cls, entry: SuiteEntry) -> Self:
        """Read a text file as windows."""
        spec = entry.spec
        return cls(
            name=spec.name,
            role=spec.role,
            margin=spec.margin,
            budget=entry.config.gate.budget_of(spec),
            **text_sequences(spec, entry.where, entry.encoder),
        )

    @classmethod
    def stated_tokens(cls, spec: SuiteConfig, max_tokens: int) -> int | None:
        """Return the size of a window."""
        return spec.window

    @classmethod
    def reading(cls, spec: SuiteConfig) -> str:
        """Name the unit."""
        return "nats per token"

    def measure(
        self, engine: RolloutEngine, encoder: PromptEncoder, snapshot: SnapshotId, seed: int
    ) -> ItemResults:
        """Score every text."""
        lengths = self.lengths
        sums = self.logprobs(engine, encoder)
        values = [total / length for total, length in zip(sums, lengths, strict=True)]
        scores = [checked(Score(value=value, status="scored"), None) for value in values]
        return self.results(snapshot, scores, sum(lengths))

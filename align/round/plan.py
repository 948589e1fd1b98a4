"""Plan of a round before it starts, and the outcome that it leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from align.config.campaign import RoundConfig
from align.data.mixture import Mixture
from align.data.replay.buffer import ReplayBuffer
from align.data.retrieval.index import ChangeCounts, DocumentIndex
from align.data.retrieval.record import PartScores
from align.data.scorer import Scorer
from align.gate.verdict import Verdict
from align.learner.references import References
from align.store.repairs import MergeOrigin, Origin, RepairStep
from rewards.environments.by_round import PromptEnvironments
from rollouts.types import Sampling, SnapshotId, WeightVersion


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundPlan:
    """Everything that makes a candidate of a round, fixed before its first step."""

    index: int
    attempt: int
    spec: RoundConfig
    references: References
    mixture: Mixture
    scorer: Scorer
    seed: int
    artifacts: Mapping[str, Path] = field(default_factory=dict)
    """Verified file that the newest accepted round on the parent's line left for a retention method, by
    the method's name."""
    origin: Origin | None = None
    """Repair, merge or further run that this is; None: the round itself, its first training."""
    weight_seed: int | None = None
    """Seed of the learner, such as of a fresh adapter; None: `seed`. The runs of a round share it."""
    retired: Mapping[str, frozenset[tuple[int, ...]] | None] = field(default_factory=dict)
    """Prompts of earlier rounds that this round or others override, as tokens, by round; None: the whole
    round. Retention methods hold them no more."""
    superseded: frozenset[str] = frozenset()
    """Earlier rounds that ask the same prompts or were overridden: in a bank this round's adapter takes
    their place."""
    documents: DocumentIndex | None = None
    """Documents that the candidate reads, the round's change included; None: it reads none."""
    documents_change: ChangeCounts | None = None
    """Numbers of documents that the round touches; None if it leaves the index as it is."""
    environments: PromptEnvironments | None = None
    """Environments that completions act in, of this round and of those whose prompts are replayed; None:
    every completion is one turn."""
    repair_prompts: ReplayBuffer | None = None
    """Prompts that repairs may ask for, of all rounds that the gate looks at; None: of what is replayed."""

    def apart(self) -> RoundPlan:
        """Return the plan with a history of prompts of its own, unless it is the round itself.

        What a repair, a merge or a further run samples is no part of the history that the round leaves.
        """
        if self.origin is None:
            return self
        mixture = replace(self.mixture, history=self.mixture.history.begun())
        return replace(self, mixture=mixture)

    @property
    def parent(self) -> SnapshotId:
        """Snapshot that the round starts from."""
        return self.references.parent

    @property
    def title(self) -> str:
        """Name for people: the round, or the repair of it that this is."""
        return f"{self.spec.name}, {self.origin.title}" if self.origin else self.spec.name

    @property
    def run(self) -> str:
        """Name of the round's attempt, or of a repair in it, such as ``03-sort.1-distil``."""
        repair = f"-{self.origin.label}" if self.origin else ""
        return f"{self.index:02d}-{self.spec.name}.{self.attempt}{repair}"

    @property
    def sampling(self) -> Sampling:
        """Sampling of the round's completions."""
        settings = self.spec.sampling
        return Sampling(
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            stop_texts=settings.stop,
        )

    @property
    def environment_metrics(self) -> Mapping[str, float]:
        """Counts of what environments have answered since the round began; empty without them."""
        return {} if self.environments is None else self.environments.metrics

    def version(self, step: int) -> WeightVersion:
        """Name the weights after ``step`` learner steps."""
        return f"{self.run}/{step}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundOutcome:
    """A candidate and what the gate said of it."""

    candidate: SnapshotId
    verdict: Verdict
    look: int
    """Number of the decision in the campaign."""
    repairs: tuple[RepairStep, ...] = ()
    """Records of every candidate, if the gate refused the first and others were tried."""
    merge: MergeOrigin | None = None
    """Origin of the round's own candidate if it was merged; None if it is what was trained."""
    parts: tuple[PartScores, ...] = ()
    """Scores of weights and index apart, if the round changed both."""

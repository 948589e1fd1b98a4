"""Suites that are a task of the lm-evaluation-harness, which asks and scores itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from align.config.gate import SuiteConfig
from align.gate.measurement.results import ItemResults
from align.gate.suites.kinds.prompts import PromptSuite
from align.gate.suites.scale import ScoreScale
from align.gate.suites.suite import SuiteEntry, rendered
from rollouts.types import SnapshotId

if TYPE_CHECKING:
    from align.gate.suites.harness.task import HarnessTask
    from rollouts.engines.protocol import RolloutEngine
    from rollouts.prompts import PromptEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessSuite(PromptSuite):
    """A task with its documents; ``prompts`` are those, for people and for the overlap with training."""

    kind: ClassVar[str] = "items"
    scale: ClassVar[ScoreScale] = ScoreScale(of_metric=True)
    answers: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    task: HarnessTask = field(repr=False, compare=False)

    @classmethod
    def of_entry(cls, entry: SuiteEntry) -> Self:
        """Find, check and load the task."""
        from align.gate.suites.harness.suite import load_harness

        spec = entry.spec
        task = load_harness(spec, entry.where, entry.encoder, entry.context)
        return cls(
            name=spec.name,
            role=spec.role,
            margin=spec.margin,
            budget=entry.config.gate.budget_of(spec),
            prompts=tuple(item.prompt for item in task.items),
            task=task,
        )

    @classmethod
    def stated_tokens(cls, spec: SuiteConfig, max_tokens: int) -> int | None:
        """Return the longest answer of suites that do not say."""
        return max_tokens

    @property
    def num_answers(self) -> int:
        """Number of documents."""
        return len(self.prompts)

    @property
    def scores_texts(self) -> bool:
        """True if the task asks for the logprobs of given texts."""
        return self.task.scores

    @property
    def unit(self) -> str:
        """Unit of a log-likelihood; empty for other metrics."""
        return self.task.unit

    def content(self) -> Mapping[str, Any]:
        """Return the documents, and the digest of the task."""
        items = [[p.id, rendered(p), dict(p.columns)] for p in self.prompts]
        return {"items": items, "harness": self.task.digest}

    def check_fit(self, encoder: PromptEncoder, max_model_len: int) -> None:
        """Do nothing: the task was checked, or cut to the context, when it was loaded."""

    def measure(
        self, engine: RolloutEngine, encoder: PromptEncoder, snapshot: SnapshotId, seed: int
    ) -> ItemResults:
        """Let the task ask and score."""
        scores, tokens = self.task.measure(engine, encoder, seed, self.value_range)
        return self.results(snapshot, scores, tokens, self.shown)

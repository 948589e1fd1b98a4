"""Suites of sampled answers whose value is that of a corpus metric: F1, BLEU and others of pooled counts.

Items keep their counts besides their own value, so that the value of any of them together is known. The
gate compares snapshots by a paired bootstrap over the items (`align.gate.statistics.bootstrap`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from align.config.data import PromptsConfig
from align.gate.measurement.results import ItemResults
from align.gate.suites.kinds.answers import AnswerSuite
from align.gate.suites.scale import UNIT, ScoreScale
from rewards.base import RewardPart, Sample
from rewards.library.corpus.metric import CorpusMetric, Counts
from rewards.registry import corpus_metric
from rewards.signatures.signature import arguments
from rollouts.errors import UserError
from rollouts.types import Completion, RolloutGroup, SnapshotId


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusSuite(AnswerSuite):
    """Prompts, and a metric that counts in each answer what the value of all of them is made of."""

    kind: ClassVar[str] = "corpus"
    scale: ClassVar[ScoreScale] = ScoreScale(range=UNIT, graded=True)
    has_figures: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    @property
    def unit(self) -> str:
        """Unit of the metric's differences."""
        return self._metric.formula.unit

    def measured(self, groups: Sequence[RolloutGroup], snapshot: SnapshotId) -> ItemResults:
        """Score the answers of a snapshot to every prompt, and count them.

        An answer that failed counts as an empty one. Several answers to one prompt count as their mean.
        """
        results = AnswerSuite.measured(self, groups, snapshot)
        samples = [
            Sample(prompt=group.prompt, completion=completion)
            for group in groups
            for completion in group.completions_G
        ]
        metric = self._metric
        rows = iter(_counts(metric, samples))
        counts = tuple(_mean([next(rows) for _ in group.completions_G]) for group in groups)
        results = replace(results, counts=counts, formula=metric.formula)
        return replace(results, beside=self.beside(results, [results]))

    def with_rubric(self, source: PromptsConfig | None, where: str, from_: str) -> Self:
        """Return the suite with its metric built, after a check that the metric can read every reference.

        Raises:
            UserError: names the first row whose reference it cannot read; or as for other suites.
        """
        suite, metric = AnswerSuite.with_rubric(self, source, where, from_), self._metric
        silence = Completion.failed("asked of nobody")
        for prompt in self.pool:
            try:
                _counts(metric, [Sample(prompt=prompt, completion=silence)])
            except UserError as error:
                raise UserError(
                    f"{prompt.label}: {error.what}", where=from_, remedy=error.remedy
                ) from error
        return suite

    def beside(self, whole: ItemResults, parts: Sequence[ItemResults]) -> Mapping[str, float]:
        """Return further figures of all counts, such as precision and recall, beside those of answers."""
        figures = AnswerSuite.beside(self, whole, parts)
        if whole.formula is None:
            return figures
        return {**figures, **whole.formula.figures(np.array(whole.counts).sum(axis=0))}

    @property
    def _metric(self) -> CorpusMetric:
        (spec,) = self.metric
        metric = corpus_metric(spec.name, spec.options)
        assert metric is not None, "RewardConfig.is_corpus"
        return metric


def _counts(metric: CorpusMetric, samples: Sequence[Sample]) -> list[Counts]:
    """Return the counts of each sample."""
    function: Callable[..., list[Counts]] = metric.counts
    part = RewardPart(name="counts", weight=1.0, function=function)
    return function(**arguments(part, samples, {}))


def _mean(rows: Sequence[Counts]) -> Counts:
    return tuple(math.fsum(column) / len(rows) for column in zip(*rows, strict=True))

"""Objective of one round: what each forward pass of a learner minimises.

    loss = algorithm(rows that teach) + sum of the penalties' terms

`align.retention` describes the penalties. Where the engines hold the learner's weights, the sampler's
logprobs and the learner's are two computations of the same number: the first pass over a batch compares
them over all its tokens, which proves the last weight sync on the way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from align.algorithms.importance import importance_weights
from align.algorithms.micro_batch import MicroBatch
from align.algorithms.outputs import Outputs
from align.algorithms.rows import Row
from align.config.campaign import RoundSettings
from align.learner.batching import (
    Denominators,
    as_teachers_read,
    by_row,
)
from align.learner.heads.critic import Critic
from align.learner.model.policy import Policy, completion_outputs
from align.learner.penalty import MovingReference, Penalty
from align.learner.reference_cache import ReferenceWeights
from align.learner.references import ReferenceModels, References
from align.learner.teachers.slow_teacher import MovingCopy
from rollouts.types import SnapshotId

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """Result of one forward pass."""

    loss: Tensor
    metrics: Mapping[str, Tensor]
    """Metrics that are summable over the passes of a step."""
    gap: float
    """Largest difference between engine and learner logprobs, in nats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """Loss of one round over the models that it asks.

    Nothing in here moves a weight or counts a step, so passes may run side by side.
    """

    policy: Policy
    anchors: ReferenceModels
    critic: Critic | None
    slow_teacher: MovingCopy | None
    """Teacher that follows the policy, instead of the snapshot that the algorithm names; None: it stays."""
    spec: RoundSettings
    references: References
    penalties: Sequence[Penalty]

    @property
    def temperature(self) -> float:
        """Temperature of the likelihoods that teach: nobody drew a file's rows at the round's."""
        drawn = self.spec.algorithm.material == "rollouts"
        return self.spec.sampling.temperature if drawn else 1.0

    def measure(self, micro: MicroBatch, over: Denominators, version: str | None) -> Pass:
        """Compute loss and metrics of one micro-batch.

        Args:
            version: name under which engines sample exactly these weights; None: under none.
        """
        outputs = self.outputs(micro)
        gap = gap_of(micro, outputs, version)
        if self.critic is not None:
            outputs.values_N = self.critic.values(micro, outputs)
        if self.spec.algorithm.teacher_snapshot is not None and micro.teaches_N.any():
            outputs.teacher = self._teacher_outputs(as_teachers_read(micro), outputs.temperature)
        micro = self._weighted(micro, outputs)
        learnt = outputs.tempered(self.temperature)
        loss, own_metrics = self.spec.algorithm.objective(micro, learnt, over.totals)
        metrics = dict(own_metrics)
        if micro.weights_N is not None:
            far_N = (micro.weights_N - 1.0).abs()[micro.teaches_N]
            metrics["importance/mean_abs_shift"] = far_N.sum() / max(over.totals.tokens, 1)
        for penalty in self.penalties:
            for term, term_metrics in penalty.penalty(micro, outputs, over):
                loss = loss + term
                metrics.update(term_metrics)
        new_N = micro.select([row.source == "new" for row in micro.rows])
        new_tokens = max(over.class_tokens.get("new", 0), 1)
        metrics["entropy"] = outputs.entropy_N[new_N].sum() / new_tokens
        return Pass(loss=loss, metrics=metrics, gap=gap)

    def outputs(self, micro: MicroBatch) -> Outputs:
        """Run the policy, under the temperature that completions are drawn with."""
        self.policy.open_gates(micro.rows)
        return completion_outputs(
            self.policy.model,
            micro,
            dtype=self.policy.dtype,
            temperature=self.spec.sampling.temperature,
        )

    @torch.no_grad()
    def filled(
        self, micro: MicroBatch, needs: Set[str], version: str | None
    ) -> tuple[list[Row], float]:
        """Return the rows of one pass with the columns that are asked for, and the gap as in `Pass`."""
        columns: dict[str, list[tuple[float, ...]]] = {}
        gap = 0.0
        if needs & {"start", "values"}:
            outputs = self.outputs(micro)
            gap = gap_of(micro, outputs, version)
            learnt = outputs.tempered(self.temperature)
            columns["start_logprobs_T"] = by_row(learnt.logprobs_N, micro)
            if self.critic is not None:
                columns["values_T"] = by_row(self.critic.values(micro, outputs), micro)
        if "reference" in needs:
            moving = {copy.name: copy.outputs for copy in self._moving().values()}
            logprobs = [
                moving.get(name, partial(self.anchors.outputs, name))(
                    micro, self.temperature
                ).logprobs_N
                * share
                for name, share in self.reference_of(micro.rows[0])
            ]
            columns["reference_logprobs_T"] = by_row(torch.stack(logprobs).sum(0), micro)
        rows = [
            replace(row, **{name: values[i] for name, values in columns.items()})  # type: ignore[arg-type]
            for i, row in enumerate(micro.rows)
        ]
        return rows, gap

    def reference_of(self, row: Row) -> ReferenceWeights:
        """Return the anchors of new prompts by their weight; the parent where there is none.

        One that follows the policy has another name after each of its moves.
        """
        weights: defaultdict[SnapshotId, float] = defaultdict(float)
        moved = {label: copy.name for label, copy in self._moving().items()}
        for term in self.spec.anchors.new:
            # Several may name one snapshot, as the parent and the last round do.
            name = moved.get(term.label) or self.references.resolve(term.to, row)
            weights[name] += term.beta
        if not weights:
            return ((self.references.named("parent"), 1.0),)
        total = sum(weights.values())
        return tuple((snapshot, weight / total) for snapshot, weight in weights.items())

    def snapshots(self, rows: Iterable[Row]) -> set[SnapshotId]:
        """Return the earlier snapshots that passes over these rows ask."""
        needed: set[SnapshotId] = set()
        moving = {copy.name for copy in self._moving().values()}
        for row in rows:
            for penalty in self.penalties:
                needed |= penalty.snapshots(row)
            if "reference" in self.spec.algorithm.needs_of(row):
                needed |= {snapshot for snapshot, _ in self.reference_of(row)} - moving
        teacher = self.spec.algorithm.teacher_snapshot
        if teacher is not None and self.slow_teacher is None:
            needed.add(self.references.named(teacher))
        return needed

    def moves(self, row: Row) -> bool:
        """Tell if the row has a gradient: it teaches, or a penalty holds it."""
        learns = row.advantage is not None and self.spec.algorithm.moves(row.advantage)
        return learns or any(penalty.moves(row) for penalty in self.penalties)

    def _moving(self) -> dict[str, MovingReference]:
        """Return the moving parts of the algorithm's reference, by their anchor's label."""
        return {
            label: copy
            for penalty in self.penalties
            for label, copy in penalty.moving_references().items()
        }

    def _teacher_outputs(self, micro: MicroBatch, temperature: float) -> Outputs:
        if self.slow_teacher is not None:
            return self.slow_teacher.outputs(micro, temperature)
        teacher = self.spec.algorithm.teacher_snapshot
        assert teacher is not None
        return self.anchors.outputs(self.references.named(teacher), micro, temperature)

    def _weighted(self, micro: MicroBatch, outputs: Outputs) -> MicroBatch:
        """Add importance weights where rows were sampled by other weights than the learner's."""
        settings = self.spec.importance
        stale = [row.stale for row in micro.rows]
        weighs = settings.level != "none" and "importance" not in self.spec.algorithm.unused
        if not weighs or not any(stale):
            return micro
        moved = any(row.start_logprobs_T is not None for row in micro.rows)
        now_N = outputs.logprobs_N.detach()
        start_N = micro.of_tokens("start_logprobs_T") if moved else now_N
        # Rows that only an anchor holds have no start of their own.
        start_N = torch.where(start_N.isnan(), now_N, start_N)
        gap_N = start_N - micro.of_tokens("sampler_logprobs_T")
        gap_N = torch.where(micro.select(stale), gap_N, 0.0)
        return replace(micro, weights_N=importance_weights(gap_N, micro.rows_N, settings))


def gap_of(micro: MicroBatch, outputs: Outputs, version: str | None) -> float:
    """Return the largest difference to the sampler's logprobs over rows sampled with exactly these weights.

    It is in nats, at a logprob below -1 divided by its size: logits are rounded in proportion to theirs.
    """
    fresh = [row.policy == version for row in micro.rows]
    if not any(fresh):
        return 0.0
    sampler_N = micro.of_tokens("sampler_logprobs_T")
    difference_N = (outputs.logprobs_N.detach() - sampler_N) / sampler_N.abs().clamp(min=1.0)
    # A NaN would lose every comparison with a number, and the check would pass.
    return float(difference_N[micro.select(fresh)].abs().nan_to_num(nan=inf).max())

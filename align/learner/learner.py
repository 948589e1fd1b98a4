"""The learner: one `update` per batch of rows, under KL toward earlier snapshots.

The objective of a step, each mean over its own tokens (``c``: new, past, general prompts):

    loss = algorithm(rows that teach) + sum_c sum_k beta_{c,k} * mean_{tokens of c} KL(pi || anchor_{c,k})

One optimizer step for every mini-batch of every epoch, or none where a gradient is not finite. Where
the engines hold the learner's weights, the sampler's logprobs and the learner's are two computations of
the same number: the first pass over a batch compares them over all its tokens, which proves the last
weight sync on the way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from align.config import AnchorConfig, PolicyConfig, RoundSettings
from align.errors import NonFiniteError, ParityError
from align.learner import kl
from align.learner.anchors import AnchorBank, BetaController, References
from align.learner.batch import MicroBatch, micro_batches, to_tensors
from align.learner.importance import importance_weights
from align.learner.optimizer import learning_rate, make_optimizer
from align.learner.outputs import Outputs
from align.learner.policy import Policy, completion_outputs
from align.learner.rows import Batch, Row, Totals
from rollouts.engine import WeightUpdate
from rollouts.types import SnapshotId

Metrics = dict[str, float]
MAX_SKIPPED_STEPS = 3
"""Non-finite steps in a row before the round fails."""
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest allowed |engine - learner| logprob, in nats."""
MICRO_BATCH_TOKENS = {"cpu": 2600, "cuda": 16384}
"""Padded tokens of one forward pass unless the campaign says otherwise."""


class Learner:
    """One rank: policy, optimizer, anchors. A round begins with fresh optimizer state."""

    def __init__(
        self,
        base: Path,
        config: PolicyConfig,
        *,
        folder_of: Callable[[SnapshotId], Path],
        scratch: Path,
        tolerance: float | None = None,
    ) -> None:
        torch.set_num_threads(config.threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.policy = Policy(base, config, device=self.device)
        self.anchors = AnchorBank(self.policy, folder_of)
        self._folder_of, self._scratch = folder_of, scratch
        self._version: str | None = ""
        self.tolerance = tolerance or TOLERANCE[config.dtype]

    def begin(
        self, spec: RoundSettings, references: References, *, num_steps: int, seed: int
    ) -> None:
        """Take the parent's weights and start the round's optimizer.

        Args:
            num_steps: updates to come, for the learning rate's schedule.
        """
        torch.manual_seed(seed)
        self.load(references.parent)
        self._spec, self._references = spec, references
        per_update = spec.optimizer.epochs * spec.optimizer.mini_batches
        self._num_steps, self._steps, self._skipped = num_steps * per_update, 0, 0
        self._optimizer = make_optimizer(self.policy.parameters(), spec.optimizer)
        self._anchors: dict[str, list[tuple[AnchorConfig, BetaController]]] = {
            source: [(term, BetaController(term)) for term in getattr(spec.anchors, source)]
            for source in ("new", "past", "general")
        }
        if spec.algorithm.anchors_are_reference:
            self._anchors["new"] = []

    def load(self, snapshot: SnapshotId) -> None:
        """Make the policy equal to a snapshot."""
        self.policy.load(self._folder_of(snapshot))

    def weights(self, version: str) -> WeightUpdate:
        """The current weights, for the engines; what these sample under ``version`` is on-policy."""
        self._version = version
        return self.policy.weights(version, self._scratch)

    def update(self, batch: Batch) -> Metrics:
        """Learn from one batch; returns metrics, all plain floats, means over the optimizer steps."""
        started = perf_counter()
        chosen = self._spec.optimizer
        rows = self._prepared(batch.rows)
        steps: list[Metrics] = []
        for _ in range(chosen.epochs):
            for part in Batch(rows=tuple(rows)).split(chosen.mini_batches):
                steps.append(self._step_on(part))
        metrics = {
            name: sum(step.get(name, 0.0) for step in steps) / len(steps)
            for name in {name for step in steps for name in step}
        }
        metrics["parity/max_abs_diff"] = max(step["parity/max_abs_diff"] for step in steps)
        return {**metrics, **batch.metrics, "time/update_s": perf_counter() - started}

    def _step_on(self, batch: Batch) -> Metrics:
        """One optimizer step on one mini-batch."""
        for parameter in self.policy.parameters():
            parameter.grad = torch.zeros_like(parameter)
        sums: defaultdict[str, float] = defaultdict(float)
        gap, totals = 0.0, batch.totals
        for rows, moving in self._by_effect(batch.rows):
            for micro in self._passes(rows):
                with torch.set_grad_enabled(moving):
                    loss, parts, difference = self._loss(micro, batch, totals)
                if moving:
                    loss.backward()  # type: ignore[no-untyped-call]
                gap = max(gap, difference)
                for name, value in parts.items():
                    sums[name] += float(value)
        self._check_parity(gap)
        metrics = {**sums, **self._step(), "parity/max_abs_diff": gap}
        for source, terms in self._anchors.items():
            for term, controller in terms:
                if (measured := sums.get(f"kl/{source}/{term.to}")) is not None:
                    metrics[f"beta/{source}/{term.to}"] = controller.beta
                    controller.observe(measured)
        return metrics

    def _passes(self, rows: Sequence[Row]) -> Any:
        size = self._spec.optimizer.micro_batch_tokens or MICRO_BATCH_TOKENS[self.device.type]
        return (micro.to(self.device) for micro in micro_batches(rows, size))

    def _by_effect(self, rows: Sequence[Row]) -> tuple[tuple[list[Row], bool], ...]:
        """Rows that can move the policy, and those that cannot: these are measured, at a third of
        the cost. Groups whose rewards are all equal are the usual case late in a round."""
        sides: tuple[list[Row], list[Row]] = ([], [])
        for row in rows:
            learns = row.advantage is not None and self._spec.algorithm.moves(row.advantage)
            sides[0 if learns or self._anchors[row.source] else 1].append(row)
        return ((sides[0], True), (sides[1], False))

    def _step(self) -> Metrics:
        """The optimizer step, unless a gradient is not finite: then nothing moves, and it is counted."""
        chosen = self._spec.optimizer
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), chosen.max_grad_norm)
        lr = learning_rate(chosen, self._steps, self._num_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._steps += 1
        if torch.isfinite(norm):
            self._optimizer.step()
            self._version, self._skipped = None, 0
        else:
            self._skipped += 1
            if self._skipped >= MAX_SKIPPED_STEPS:
                raise NonFiniteError(
                    f"the gradient was not finite in {self._skipped} steps in a row",
                    where="learner",
                    cause=f"a learning rate of {lr:g} that is too high, or a model that overflows",
                    remedy="lower optimizer.lr, or set policy.dtype to float32",
                )
        return {"grad_norm": float(norm), "lr": lr, "steps_skipped": float(self._skipped > 0)}

    def _loss(
        self, micro: MicroBatch, batch: Batch, totals: Totals
    ) -> tuple[Tensor, dict[str, Tensor], float]:
        """Loss and summable metrics of one micro-batch, and its largest engine-learner gap."""
        outputs = self._outputs(micro)
        gap = self._gap(micro, outputs)
        loss, found = self._spec.algorithm.objective(
            self._weighted(micro, outputs), outputs, totals
        )
        metrics = dict(found)
        for source, terms in self._anchors.items():
            for term, controller in terms:
                penalty, measured = self._anchor_loss(micro, outputs, source, term, batch)
                loss = loss + controller.beta * penalty
                if measured is not None:
                    metrics[f"kl/{source}/{term.to}"] = measured
        new_N = micro.select([row.source == "new" for row in micro.rows])
        metrics["entropy"] = outputs.entropy_N[new_N].sum() / max(batch.class_tokens["new"], 1)
        return loss, metrics, gap

    def _outputs(self, micro: MicroBatch) -> Outputs:
        return completion_outputs(
            self.policy.model,
            micro,
            dtype=self.policy.dtype,
            temperature=self._spec.sampling.temperature,
        )

    def _gap(self, micro: MicroBatch, outputs: Outputs) -> float:
        """Largest difference to the sampler's logprobs, over rows sampled with exactly these weights."""
        fresh = [row.policy == self._version for row in micro.rows]
        if not any(fresh):
            return 0.0
        difference_N = outputs.logprobs_N.detach() - micro.of_tokens("sampler_logprobs_T")
        # A NaN would lose every comparison with a number, and the check would pass.
        return float(difference_N[micro.select(fresh)].abs().nan_to_num(nan=inf).max())

    def _weighted(self, micro: MicroBatch, outputs: Outputs) -> MicroBatch:
        """With importance weights where rows were sampled by other weights than the learner's."""
        chosen = self._spec.importance
        stale = [row.stale for row in micro.rows]
        if chosen.level == "none" or not any(stale):
            return micro
        moved = any(row.start_logprobs_T is not None for row in micro.rows)
        start_N = micro.of_tokens("start_logprobs_T") if moved else outputs.logprobs_N.detach()
        gap_N = start_N - micro.of_tokens("sampler_logprobs_T")
        gap_N = torch.where(micro.select(stale), gap_N, 0.0)
        return replace(micro, weights_N=importance_weights(gap_N, micro.rows_N, chosen))

    def _anchor_loss(
        self, micro: MicroBatch, outputs: Outputs, source: str, term: AnchorConfig, batch: Batch
    ) -> tuple[Tensor, Tensor | None]:
        """One anchor's penalty over the rows of one class: a forward pass for each snapshot that holds
        some of them."""
        holders: dict[SnapshotId, list[int]] = {}
        for index, row in enumerate(micro.rows):
            if row.source == source:
                holders.setdefault(self._references.resolve(term.to, row), []).append(index)
        if not holders:
            return outputs.hidden_ND.new_zeros(()), None
        pairs = []
        for snapshot, indices in holders.items():
            whole = len(indices) == len(micro.rows)
            held = micro if whole else to_tensors([micro.rows[i] for i in indices]).to(self.device)
            own = outputs if whole else outputs.at(micro.tokens_of(indices))
            anchor = self.anchors.outputs(snapshot, held, outputs.temperature)
            pairs.append(penalty_of(term.estimator, own, anchor, held))
        denominator = max(batch.class_tokens[source], 1)
        penalty, meter = (
            torch.stack(side).sum() / denominator for side in zip(*pairs, strict=True)
        )
        return penalty, meter

    def _prepared(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Rows with what the algorithm needs to know of them before the first step, and marked stale
        where other weights than the learner's sampled them."""
        chosen = self._spec.optimizer
        rows = [replace(row, stale=self._is_stale(row)) for row in rows]
        needs = set[str](self._spec.algorithm.needs)
        if chosen.epochs * chosen.mini_batches > 1:
            needs.add("start")
        if needs:
            rows = [filled for micro in self._passes(rows) for filled in self._filled(micro, needs)]
        return self._spec.algorithm.complete(rows)

    def _is_stale(self, row: Row) -> bool:
        return bool(row.sampler_logprobs_T) and row.policy != self._version

    @torch.no_grad()
    def _filled(self, micro: MicroBatch, needs: set[str]) -> list[Row]:
        """The rows of one pass with the columns that are asked for."""
        columns: dict[str, list[tuple[float, ...]]] = {}
        if "start" in needs:
            columns["start_logprobs_T"] = by_row(self._outputs(micro).logprobs_N, micro)
        if "reference" in needs:
            columns["reference_logprobs_T"] = by_row(self._reference(micro), micro)
        return [
            replace(row, **{name: values[i] for name, values in columns.items()})  # type: ignore[arg-type]
            for i, row in enumerate(micro.rows)
        ]

    def _reference(self, micro: MicroBatch) -> Tensor:
        """Logprobs of the weighted mean of the anchors of new prompts; the parent's without any."""
        terms = self._spec.anchors.new
        weights = {self._references.resolve(term.to, micro.rows[0]): term.beta for term in terms}
        weights = weights or {self._references.parent: 1.0}
        total = sum(weights.values())
        return torch.stack(
            [
                self.anchors.outputs(snapshot, micro, self._spec.sampling.temperature).logprobs_N
                * (weight / total)
                for snapshot, weight in weights.items()
            ]
        ).sum(0)

    @torch.no_grad()
    def divergence(self, rows: list[Row], snapshot: SnapshotId) -> float:
        """Mean full-vocabulary KL(policy || snapshot) over the rows' tokens, in nats: a drift meter."""
        micro = to_tensors(rows).to(self.device)
        own = self._outputs(micro)
        anchor = self.anchors.outputs(snapshot, micro, own.temperature)
        return float(own.divergence(anchor, kl.full).mean())

    @torch.no_grad()
    def completion_logprobs(self, rows: list[Row]) -> list[tuple[float, ...]]:
        """Logprobs at temperature 1 of each row's completion tokens: the learner's half of a probe."""
        micro = to_tensors(rows).to(self.device)
        outputs = completion_outputs(
            self.policy.model, micro, dtype=self.policy.dtype, temperature=1.0
        )
        return by_row(outputs.logprobs_N, micro)

    def _check_parity(self, gap: float) -> None:
        if not gap <= self.tolerance:
            raise ParityError(
                f"engine and learner disagree by {gap:.3g} nats on a sampled token, tolerance "
                f"{self.tolerance:g}",
                where="weight sync",
                cause="an engine sampled with other weights, another temperature or another precision",
                remedy="report the model and engine version; rollouts.probe_tolerance sets the tolerance",
            )


def by_row(values_N: Tensor, micro: MicroBatch) -> list[tuple[float, ...]]:
    """A flat column cut into the rows it belongs to."""
    counts = [len(row.completion_ids) for row in micro.rows]
    return [tuple(piece.tolist()) for piece in torch.split(values_N, counts)]


def penalty_of(
    estimator: str, own: Outputs, anchor: Outputs, micro: MicroBatch
) -> tuple[Tensor, Tensor]:
    """Summed penalty with the estimator's gradient, and summed KL to report (detached)."""
    if estimator in kl.VOCABULARY_ESTIMATORS:
        total = own.divergence(anchor, kl.VOCABULARY_ESTIMATORS[estimator]).sum()
        return total, total.detach()
    meter = kl.k3(own.logprobs_N.detach(), anchor.logprobs_N).sum()
    if estimator == "k1":
        return kl.k1_in_reward(own.logprobs_N, anchor.logprobs_N, micro.rows_N).sum(), meter
    return kl.TOKEN_ESTIMATORS[estimator](own.logprobs_N, anchor.logprobs_N).sum(), meter

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
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from math import inf, isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from align.config import AnchorConfig, PolicyConfig, RoundSettings
from align.errors import NonFiniteError, ParityError
from align.learner import kl
from align.learner.allocation import keep_freed_memory
from align.learner.anchors import AnchorBank, BetaController, References, penalty_of
from align.learner.batch import MicroBatch, by_row, micro_batches, to_tensors
from align.learner.checkpoint import Checkpoint, restore_checkpoint, save_checkpoint
from align.learner.critic import Critic, make_critic
from align.learner.importance import importance_weights
from align.learner.optimizer import add_group, learning_rate, make_optimizer, set_learning_rates
from align.learner.outputs import Outputs
from align.learner.policy import Policy, completion_outputs
from align.learner.ranks import SOLO, Ranks
from align.learner.reference_cache import Mixture, ReferenceCache
from align.learner.rows import Batch, Row, Totals
from align.learner.sharding import whole
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
        ranks: Ranks = SOLO,
    ) -> None:
        torch.set_num_threads(config.threads)
        keep_freed_memory()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.ranks = ranks
        self.policy = Policy(base, config, device=self.device, ranks=ranks)
        self.anchors = AnchorBank(self.policy, folder_of)
        self.critic: Critic | None = None
        self.reference_cache = ReferenceCache()
        self._base, self._folder_of, self._scratch = base, folder_of, scratch
        self._version: str | None = ""
        self.tolerance = tolerance or TOLERANCE[config.dtype]

    def begin(
        self, spec: RoundSettings, references: References, *, num_steps: int, seed: int
    ) -> None:
        """Take the weights that the round begins with and start its optimizer.

        Args:
            num_steps: updates to come, for the learning rate's schedule.
        """
        torch.manual_seed(seed)
        self._start(references)
        self._spec, self._references = spec, references
        per_update = spec.optimizer.epochs * spec.optimizer.mini_batches
        self._num_steps, self._steps, self._skipped = num_steps * per_update, 0, 0
        # The last round's critic goes, with its moments, before the next one comes.
        self.critic = None
        self._optimizer = make_optimizer(self.policy.parameters(), spec.optimizer)
        self._critic_only = 0
        if (chosen := spec.algorithm.critic_config) is not None:
            adapters = self.policy.config.snapshot_kind == "adapter"
            full = self._base if adapters else self._folder_of(references.parent)
            self.critic = make_critic(chosen, self.policy, full)
            add_group(self._optimizer, self.critic.parameters(), chosen.lr)
            self._critic_only = chosen.warmup_steps * per_update
        self._anchors: dict[str, list[tuple[AnchorConfig, BetaController]]] = {
            source: [(term, BetaController(term)) for term in getattr(spec.anchors, source)]
            for source in ("new", "past", "general")
        }
        if spec.algorithm.anchors_are_reference:
            self._anchors["new"] = []

    def load(self, snapshot: SnapshotId) -> None:
        """Make the policy equal to a snapshot."""
        self.policy.load(self._folder_of(snapshot))

    def _start(self, references: References) -> None:
        if (toward := references.toward) is None:
            self.load(references.parent)
            return
        start, end = (self._folder_of(s) for s in (references.parent, toward.snapshot))
        self.policy.blend(start, end, toward.share)

    def save(self, folder: Path) -> None:
        """Write the policy as a snapshot; see `Policy.save`."""
        self.policy.save(folder)

    def weights(self, version: str) -> WeightUpdate:
        """The current weights, for the engines; what these sample under ``version`` is on-policy."""
        self._version = version
        return self.policy.weights(version, self._scratch)

    def checkpoint(self, folder: Path, step: int, **told: Any) -> None:
        """Write down the state after ``step`` updates; see `save_checkpoint`."""
        save_checkpoint(self, folder, step, **told)

    def restore(self, folder: Path, *, identity: Mapping[str, str]) -> Checkpoint | None:
        """Continue a round after `begin`; see `restore_checkpoint`."""
        return restore_checkpoint(self, folder, identity=identity)

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
        # A batch may have nothing to learn from, and then no step.
        gaps = [step["parity/max_abs_diff"] for step in steps]
        metrics["parity/max_abs_diff"] = max(gaps, default=0.0)
        metrics |= self._spec.algorithm.derived(metrics)
        return {**metrics, **batch.metrics, "time/update_s": perf_counter() - started}

    def _step_on(self, batch: Batch) -> Metrics:
        """One optimizer step on one mini-batch."""
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        sums: defaultdict[str, float] = defaultdict(float)
        gap, totals = 0.0, batch.totals
        for rows, moving in self._by_effect(batch.rows):
            for micro, counts in self._passes(rows):
                with torch.set_grad_enabled(moving):
                    loss, parts, difference = self._loss(micro, batch, totals)
                if moving:
                    (loss if counts else loss * 0.0).backward()  # type: ignore[no-untyped-call]
                if not counts:
                    continue
                gap = max(gap, difference)
                for name, value in parts.items():
                    sums[name] += float(value)
        gap, found = self.ranks.max(gap), self.ranks.sum(sums)
        self._check_parity(gap)
        metrics = {**found, **self._step(), "parity/max_abs_diff": gap}
        for source, terms in self._anchors.items():
            for term, controller in terms:
                if (measured := found.get(f"kl/{source}/{term.to}")) is not None:
                    metrics[f"beta/{source}/{term.to}"] = controller.beta
                    controller.observe(measured)
        return metrics

    def _passes(self, rows: Sequence[Row]) -> Iterator[tuple[MicroBatch, bool]]:
        """This rank's share of the forward passes over rows, and whether each counts."""
        size = self._spec.optimizer.micro_batch_tokens or MICRO_BATCH_TOKENS[self.device.type]
        passes = list(micro_batches(rows, size, packed=self.policy.packs))
        for index, counts in self.ranks.deal(len(passes)):
            yield passes[index].to(self.device), counts

    def _by_effect(self, rows: Sequence[Row]) -> tuple[tuple[list[Row], bool], ...]:
        """Rows that can move the policy, and those that cannot: these are measured, at a third of
        the cost. Groups whose rewards are all equal are the usual case late in a round."""
        sides: tuple[list[Row], list[Row]] = ([], [])
        for row in rows:
            learns = row.advantage is not None and self._spec.algorithm.moves(row.advantage)
            sides[0 if learns or self._anchors[row.source] else 1].append(row)
        return ((sides[0], True), (sides[1], False))

    def _step(self) -> Metrics:
        """The optimizer step, unless a gradient is not finite: then nothing moves, and it is counted.

        The critic's gradient is clipped on its own: a large one must not shrink the policy's. While the
        critic warms up, a policy without gradients is one that the optimizer passes over.
        """
        chosen = self._spec.optimizer
        norms = {"grad_norm": self._clip(self.policy.parameters())}
        if self.critic is not None:
            norms["critic/grad_norm"] = self._clip(self.critic.parameters())
        lr = learning_rate(chosen, self._steps, self._num_steps)
        set_learning_rates(self._optimizer, lr / chosen.lr)
        warming = self._steps < self._critic_only
        self._steps += 1
        if all(isfinite(norm) for norm in norms.values()):
            if warming:
                self.policy.model.zero_grad(set_to_none=True)
            else:
                self._version = None
            self._optimizer.step()
            self._skipped = 0
        else:
            self._skipped += 1
            if self._skipped >= MAX_SKIPPED_STEPS:
                raise NonFiniteError(
                    f"the gradient was not finite in {self._skipped} steps in a row",
                    where="learner",
                    cause=f"a learning rate of {lr:g} that is too high, or a model that overflows",
                    remedy="lower optimizer.lr, or set policy.dtype to float32",
                )
        return {**norms, "lr": lr, "steps_skipped": float(self._skipped > 0)}

    def _clip(self, parameters: list[nn.Parameter]) -> float:
        """Clip what all ranks' gradients come to; its norm before."""
        self.ranks.add_gradients(parameters)
        largest = self._spec.optimizer.max_grad_norm
        return float(whole(torch.nn.utils.clip_grad_norm_(parameters, largest)))

    def _loss(
        self, micro: MicroBatch, batch: Batch, totals: Totals
    ) -> tuple[Tensor, dict[str, Tensor], float]:
        """Loss and summable metrics of one micro-batch, and its largest engine-learner gap."""
        outputs = self._outputs(micro)
        gap = self._gap(micro, outputs)
        if self.critic is not None:
            outputs.values_N = self.critic.values(micro, outputs)
        teacher = self._spec.algorithm.teacher_snapshot
        if teacher is not None and micro.teaches_N.any():
            snapshot = self._references.resolve(teacher, micro.rows[0])
            outputs.teacher = self.anchors.teacher(snapshot, micro, outputs.temperature)
        micro = self._weighted(micro, outputs)
        loss, found = self._spec.algorithm.objective(micro, outputs, totals)
        metrics = dict(found)
        if micro.weights_N is not None:
            far_N = (micro.weights_N - 1.0).abs()[micro.teaches_N]
            metrics["importance/mean_abs_shift"] = far_N.sum() / max(totals.tokens, 1)
        for source, terms in self._anchors.items():
            for term, controller in terms:
                penalty, measured = self._anchor_loss(micro, outputs, source, term, batch)
                loss = loss + controller.beta * penalty
                if measured is not None:
                    metrics[f"kl/{source}/{term.to}"] = measured
        new_N = micro.select([row.source == "new" for row in micro.rows])
        metrics["entropy"] = outputs.entropy_N[new_N].sum() / max(batch.class_tokens["new"], 1)
        return loss, metrics, gap

    def _outputs(self, micro: MicroBatch, temperature: float | None = None) -> Outputs:
        chosen = temperature or self._spec.sampling.temperature
        return completion_outputs(
            self.policy.model, micro, dtype=self.policy.dtype, temperature=chosen
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
        several = self._spec.optimizer.epochs * self._spec.optimizer.mini_batches > 1
        cache, temperature = self.reference_cache, self._spec.sampling.temperature
        by_needs: dict[frozenset[str], list[Row]] = {}
        for row in rows:
            given = replace(row, stale=self._is_stale(row))
            needs: set[str] = {*self._spec.algorithm.needs_of(row), *(["start"] if several else [])}
            if "reference" in needs:
                found = cache.recall(given, self._reference_of(row), temperature)
                needs -= {"reference"} if found else set()
                given = found or given
            by_needs.setdefault(frozenset(needs), []).append(given)
        filled = list(by_needs.pop(frozenset(), []))
        for asked, some in by_needs.items():
            made = [(self._filled(micro, asked), counts) for micro, counts in self._passes(some)]
            shares = self.ranks.gather([rows for rows, counts in made if counts])
            filled.extend(row for share in shares for row in share)
        if any(row.reference_logprobs_T for row in filled):
            cache.keep(filled, self._reference_of(filled[0]), temperature)
        return self._spec.algorithm.complete(filled)

    def _is_stale(self, row: Row) -> bool:
        return bool(row.sampler_logprobs_T) and row.policy != self._version

    @torch.no_grad()
    def _filled(self, micro: MicroBatch, needs: Set[str]) -> list[Row]:
        """The rows of one pass with the columns that are asked for."""
        columns: dict[str, list[tuple[float, ...]]] = {}
        if needs & {"start", "values"}:
            outputs = self._outputs(micro)
            columns["start_logprobs_T"] = by_row(outputs.logprobs_N, micro)
            if self.critic is not None:
                columns["values_T"] = by_row(self.critic.values(micro, outputs), micro)
        if "reference" in needs:
            columns["reference_logprobs_T"] = by_row(self._reference(micro), micro)
        return [
            replace(row, **{name: values[i] for name, values in columns.items()})  # type: ignore[arg-type]
            for i, row in enumerate(micro.rows)
        ]

    def _reference(self, micro: MicroBatch) -> Tensor:
        """Logprobs of the weighted mean of the reference's snapshots."""
        return torch.stack(
            [
                self.anchors.outputs(snapshot, micro, self._spec.sampling.temperature).logprobs_N
                * share
                for snapshot, share in self._reference_of(micro.rows[0])
            ]
        ).sum(0)

    def _reference_of(self, row: Row) -> Mixture:
        """The anchors of new prompts by their weight; the parent without any."""
        terms = self._spec.anchors.new
        weights = {self._references.resolve(term.to, row): term.beta for term in terms}
        weights = weights or {self._references.parent: 1.0}
        total = sum(weights.values())
        return tuple((snapshot, weight / total) for snapshot, weight in weights.items())

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
        return by_row(self._outputs(micro, temperature=1.0).logprobs_N, micro)

    def _check_parity(self, gap: float) -> None:
        if not gap <= self.tolerance:
            raise ParityError(
                f"engine and learner disagree by {gap:.3g} nats on a sampled token, tolerance "
                f"{self.tolerance:g}",
                where="weight sync",
                cause="an engine sampled with other weights, another temperature or another precision",
                remedy="report the model and engine version; rollouts.probe_tolerance sets the tolerance",
            )

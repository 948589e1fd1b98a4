"""Learning of one round: what each forward pass minimises, and the optimizer steps that do it.

The objective of a step, whose penalties `align.retention` describes:

    loss = algorithm(rows that teach) + sum of the penalties' terms

There is one optimizer step for every mini-batch of every epoch, or none where a gradient is not finite.
Where the engines hold the learner's weights, the first pass over a batch compares their logprobs with the
learner's over all its tokens, which proves the last weight sync on the way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from align.algorithms import divergences as kl
from align.algorithms.importance import importance_weights
from align.algorithms.micro_batch import MicroBatch
from align.algorithms.outputs import Outputs
from align.algorithms.rows import Batch, Row
from align.config.campaign import RoundSettings
from align.errors import ParityError
from align.learner.batching import (
    Denominators,
    as_teachers_read,
    by_row,
    cost,
    even_passes,
    to_tensors,
)
from align.learner.checkpoint import (
    CRITIC,
    RETENTION,
    TEACHER,
    WEIGHTS,
    Checkpoint,
    TrainingState,
    restore_checkpoint,
    save_checkpoint,
)
from align.learner.heads.critic import Critic
from align.learner.model.policy import Policy, completion_outputs
from align.learner.optimizer import (
    clip_gradients,
    count_skipped,
    learning_rate,
    penalize_weights,
    set_learning_rates,
    take_step,
)
from align.learner.parity import gap_of
from align.learner.penalty import MovingReference, Penalty
from align.learner.ranks.lanes import Gradients, Lanes
from align.learner.ranks.sharding import local
from align.learner.reference_cache import ReferenceWeights
from align.learner.references import ReferenceModels, References
from align.learner.teachers.moving_copy import MovingCopy
from rollouts.types import SnapshotId

if TYPE_CHECKING:
    from align.learner.learner import Learner

T = TypeVar("T")
Metrics = dict[str, float]
KEYS = "bank.keys"
"""Name of the keys of a bank's adapter among the weights of a checkpoint."""


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
    moving_teacher: MovingCopy | None
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
        if teacher is not None and self.moving_teacher is None:
            needed.add(self.references.named(teacher))
        return needed

    def moves(self, row: Row) -> bool:
        """Tell if the row has a gradient: it teaches, or a penalty holds it."""
        learns = any(map(self.spec.algorithm.moves, row.advantages))
        return learns or any(penalty.moves(row) for penalty in self.penalties)

    def _moving(self) -> dict[str, MovingReference]:
        """Return the moving parts of the algorithm's reference, by their anchor's label."""
        return {
            label: copy
            for penalty in self.penalties
            for label, copy in penalty.moving_references().items()
        }

    def _teacher_outputs(self, micro: MicroBatch, temperature: float) -> Outputs:
        if self.moving_teacher is not None:
            return self.moving_teacher.outputs(micro, temperature)
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


class Training:
    """Learning of one round on one rank: optimizer, objective and counters over the weights of a learner.

    Args:
        learner: holds the weights that the round begins with.
        optimizer: over the policy's weights and those of the objective's critic, with fresh state.
        num_steps: updates to come, for the learning rate's schedule.
    """

    steps: int
    """Optimizer steps that were taken or skipped."""
    skipped: int
    """Steps in a row, up to the last, that were skipped because a gradient was not finite."""

    def __init__(
        self,
        learner: Learner,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        num_steps: int,
    ) -> None:
        self.learner, self.objective, self.optimizer = learner, objective, optimizer
        settings, critic = self.spec.optimizer, self.spec.algorithm.critic_config
        per_update = settings.epochs * settings.mini_batches
        self._num_steps, self.steps, self.skipped = num_steps * per_update, 0, 0
        self._critic_only = 0 if critic is None else critic.warmup_steps * per_update

    @property
    def spec(self) -> RoundSettings:
        """Settings of the round."""
        return self.objective.spec

    @property
    def critic(self) -> Critic | None:
        """Critic of the round's algorithm; None where it has none."""
        return self.objective.critic

    @property
    def penalties(self) -> Sequence[Penalty]:
        """Retention methods of the round."""
        return self.objective.penalties

    def before_steps(self, rows: Sequence[Row]) -> None:
        """Show the penalties what the policy says before its first step; see `Penalty.before_steps`."""
        for penalty in self.penalties:
            penalty.before_steps(rows)

    def update(self, batch: Batch) -> Metrics:
        """Learn from one batch; return metrics, all plain floats, means over the optimizer steps."""
        started = perf_counter()
        settings = self.spec.optimizer
        rows = tuple(self._completed(batch.rows))
        for penalty in self.penalties:
            penalty.before_batch(rows)
        steps = [
            self._step_on(part)
            for _ in range(settings.epochs)
            for part in Batch(rows=rows).split(settings.mini_batches)
        ]
        names = {name for step in steps for name in step}
        metrics = {n: sum(step.get(n, 0.0) for step in steps) / len(steps) for n in names}
        gaps = (step["parity/max_abs_diff"] for step in steps)
        metrics["parity/max_abs_diff"] = max(gaps, default=0.0)  # A batch may have no step.
        metrics |= {**self.spec.algorithm.derived(metrics), **batch.metrics}
        for penalty in self.penalties:
            metrics |= penalty.after_batch(metrics)
        if any(penalty.restarts_optimizer for penalty in self.penalties):
            self.optimizer.state.clear()
        return {**metrics, "time/update_s": perf_counter() - started}

    def _step_on(self, batch: Batch) -> Metrics:
        """Take one optimizer step on one mini-batch; return its metrics, sums over passes and ranks."""
        over, version = Denominators.of(batch), self._version
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = Gradients(trained, self.learner.lanes.count)

        def measure(
            learns: bool, lane: int, micro: MicroBatch, counts: bool
        ) -> tuple[float, Metrics]:
            with self.learner.policy.passing(learns=learns):
                with torch.set_grad_enabled(learns):
                    measured = self.objective.measure(micro, over, version)
                if learns:
                    gradients.add(lane, measured.loss if counts else measured.loss * 0.0)
            return measured.gap, {n: float(value) for n, value in measured.metrics.items()}

        # Rows that cannot move the policy are measured, at a third of the cost. Groups whose rewards are
        # all equal are the usual case late in a round.
        moving: list[Row] = []
        still: list[Row] = []
        for row in batch.rows:
            (moving if self.objective.moves(row) else still).append(row)
        with ExitStack() as contexts:
            for penalty in self.penalties:
                contexts.enter_context(penalty.during_passes())
            passes = self._replay_passes(moving, partial(measure, True), gradients)
            passes += self._each_pass(moving, partial(measure, True), self._budget())
        passes += self._own_passes(gradients)
        passes += self._each_pass(still, partial(measure, False), self._budget())
        sums: defaultdict[str, float] = defaultdict(float)
        for _, pass_metrics in passes:
            for name, value in pass_metrics.items():
                sums[name] += value
        gradients.collect()
        gap = self.learner.ranks.max(max((pass_gap for pass_gap, _ in passes), default=0.0))
        summed = self.learner.ranks.sum(sums)
        self._check_parity(gap)
        metrics = {**summed, **self._optimize(), "parity/max_abs_diff": gap}
        for penalty in self.penalties:
            metrics |= penalty.after_step(summed)
        return metrics

    def _own_passes(self, gradients: Gradients) -> list[tuple[float, Metrics]]:
        """Pass the rows that penalties have of their own; return metrics as `_each_pass` does."""

        def measure(
            penalty: Penalty, lane: int, micro: MicroBatch, counts: bool
        ) -> tuple[float, Metrics]:
            with self.learner.policy.passing(learns=True), torch.enable_grad():
                term, metrics = penalty.own_penalty(micro, self.objective.outputs(micro))
                gradients.add(lane, term if counts else term * 0.0)
            return 0.0, {name: float(value) for name, value in metrics.items()}

        passes: list[tuple[float, Metrics]] = []
        for penalty in self.penalties:
            if rows := penalty.own_rows():
                passes += self._each_pass(rows, partial(measure, penalty), self._budget())
        return passes

    def _replay_passes(
        self, rows: list[Row], work: Callable[[int, MicroBatch, bool], T], gradients: Gradients
    ) -> list[T]:
        """Take replayed rows out and pass them first, if a penalty asks for their gradient alone.

        Returns:
            Results of the passes, as `_each_pass` does; the policy's gradient is handed on and zeroed.
        """
        asking = [penalty for penalty in self.penalties if penalty.separates_replay]
        if not asking:
            return []
        replayed = [row for row in rows if row.source != "new"]
        rows[:] = [row for row in rows if row.source == "new"]
        passes = self._each_pass(replayed, work, self._budget())
        gradients.collect()
        trained = self.learner.policy.named_parameters()
        self.learner.ranks.add_gradients(trained.values())
        parts = {name: local(p.grad) for name, p in trained.items() if p.grad is not None}
        for penalty in asking:
            penalty.after_replay(parts)
        gradients.restart(trained.values())
        return passes

    def _each_pass(
        self, rows: Sequence[Row], work: Callable[[int, MicroBatch, bool], T], budget: int
    ) -> list[T]:
        """Call ``work(lane, micro-batch, counts)`` for this rank's share of the forward passes.

        Returns:
            Results of the passes that count; see `Ranks.deal`.
        """
        learner = self.learner
        passes = even_passes(rows, budget, learner.lanes.count, packed=learner.policy.packs)
        share = [(passes[index], counts) for index, counts in learner.ranks.deal(len(passes))]

        def run(lane: int, turn: tuple[list[Row], bool]) -> T:
            pass_rows, counts = turn
            return work(lane, to_tensors(pass_rows).to(learner.device), counts)

        lanes = learner.lanes
        if lanes.count > 1 and not learner.anchors.hold(self.objective.snapshots(rows)):
            lanes = Lanes()
        results = lanes.each(run, share, [cost(pass_rows) for pass_rows, _ in share])
        return [result for result, (_, counts) in zip(results, share, strict=True) if counts]

    def _budget(self) -> int:
        """Return the padded tokens of a pass; all lanes hold theirs at a time, in memory and in caches."""
        tokens = self.spec.optimizer.micro_batch_tokens or self.learner.pass_tokens
        return tokens // self.learner.lanes.count

    def _optimize(self) -> Metrics:
        """Take the optimizer step unless a gradient is not finite: then nothing moves, and it is counted.

        The critic's gradient is clipped on its own: a large one must not shrink the policy's. While the
        critic warms up, a policy without gradients is one that the optimizer passes over.
        """
        settings, policy, ranks = self.spec.optimizer, self.learner.policy, self.learner.ranks
        trained = policy.named_parameters()
        ranks.add_gradients(trained.values())
        values = penalize_weights(self.penalties, trained, self.learner.device)
        values = ranks.sum(values) if values and policy.sharded else values
        norms = {"grad_norm": clip_gradients(trained.values(), settings.max_grad_norm)}
        if self.critic is not None:
            ranks.add_gradients(self.critic.parameters())
            norm = clip_gradients(self.critic.parameters(), settings.max_grad_norm)
            norms["critic/grad_norm"] = norm
        lr = learning_rate(settings, self.steps, self._num_steps)
        set_learning_rates(self.optimizer, lr / settings.lr)
        warming = self.steps < self._critic_only
        self.steps += 1
        if all(isfinite(norm) for norm in norms.values()):
            if warming:
                policy.model.zero_grad(set_to_none=True)
                self.optimizer.step()
            else:
                self.learner.fresh = False
                take_step(self.optimizer, self.penalties, trained)
            self.skipped = 0
            if self.objective.moving_teacher is not None:
                self.objective.moving_teacher.move()
        else:
            self.skipped = count_skipped(self.skipped, lr)
        return {**norms, **values, "lr": lr, "steps_skipped": float(self.skipped > 0)}

    def _completed(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Return the rows with what the algorithm needs to know of them before the first step.

        Rows that other weights or numbers than the learner's sampled are marked stale.
        """
        several = self.spec.optimizer.epochs * self.spec.optimizer.mini_batches > 1
        cache, temperature = self.learner.reference_cache, self.objective.temperature
        ready: list[Row] = []
        by_needs: defaultdict[frozenset[str], list[int]] = defaultdict(list)
        for index, row in enumerate(rows):
            foreign = self.learner.engines_differ or row.policy != self._version
            row = replace(row, stale=foreign and bool(row.sampler_logprobs_T))
            needs: set[str] = {*self.spec.algorithm.needs_of(row), *(["start"] if several else [])}
            if "reference" in needs:
                recalled = cache.recall(row, self.objective.reference_of(row), temperature)
                if recalled is not None:
                    row = recalled
                    needs.remove("reference")
            ready.append(row)
            if needs:
                by_needs[frozenset(needs)].append(index)
        for needs_of_all, indices in by_needs.items():
            for index, row in self._filled({i: ready[i] for i in indices}, needs_of_all):
                ready[index] = row
        if any(row.reference_logprobs_T for row in ready):
            cache.keep(ready, self.objective.reference_of(ready[0]), temperature)
        return self.spec.algorithm.complete(ready)

    def _filled(self, rows: Mapping[int, Row], needs: Set[str]) -> list[tuple[int, Row]]:
        """Return rows of a batch, by their index, with the columns that they need."""
        index_of = {id(row): index for index, row in rows.items()}

        def fill(lane: int, micro: MicroBatch, counts: bool) -> tuple[list[tuple[int, Row]], float]:
            with self.learner.policy.passing(learns=False):
                filled, gap = self.objective.filled(micro, needs, self._version)
            pairs = zip(micro.rows, filled, strict=True)
            return [(index_of[id(row)], full) for row, full in pairs], gap

        passes = self._each_pass(list(rows.values()), fill, self._budget())
        shares = self.learner.ranks.gather(passes)
        for _, gap in shares:
            self._check_parity(gap)
        return [pair for pairs, _ in shares for pair in pairs]

    @torch.no_grad()
    def divergence(self, rows: Sequence[Row], snapshot: SnapshotId) -> float:
        """Return the mean full-vocabulary KL(policy || snapshot) over the rows' tokens, in nats.

        Raises:
            ParityError: these weights sampled the rows, and the engine says other logprobs.
        """
        micro = to_tensors(rows).to(self.learner.device)
        with self.learner.policy.passing(learns=False):
            outputs = self.objective.outputs(micro)
        self._check_parity(gap_of(micro, outputs, self._version))
        anchor = self.learner.anchors.outputs(snapshot, micro, outputs.temperature)
        return float(outputs.divergence(anchor, kl.full).mean())

    def write_artifacts(self, folder: Path, rows: Sequence[Row]) -> None:
        """Write what each penalty keeps of the accepted policy, which the learner holds, for later rounds.

        A penalty's tensors go into ``NAME.safetensors``; there is no file where it keeps none. Of several
        ranks the first writes, and all must call.

        Args:
            rows: samples of the accepted policy.
        """
        from safetensors.torch import save_file

        for penalty in self.penalties:
            tensors = {n: t.contiguous() for n, t in penalty.after_accept(rows).items()}
            if tensors and self.learner.ranks.rank == 0:
                folder.mkdir(parents=True, exist_ok=True)
                save_file(tensors, folder / f"{penalty.name}.safetensors")

    def counters(self) -> dict[str, Any]:
        """Return what the penalties count from step to step."""
        return {name: n for p in self.penalties for name, n in p.counters().items()}

    def resume(self, counters: Mapping[str, Any]) -> None:
        """Let the penalties take over what they counted in another training of the round."""
        for penalty in self.penalties:
            penalty.resume(counters)

    def checkpoint(self, folder: Path, step: int, **records: Any) -> None:
        """Write down the state after ``step`` updates; see `save_checkpoint`."""
        save_checkpoint(self.state(), folder, step, **records)

    def restore(self, folder: Path, *, identity: Mapping[str, str]) -> Checkpoint | None:
        """Continue from the newest checkpoint; return it, or None if there is none.

        Raises:
            SnapshotError: see `restore_checkpoint`; the training is as it was.
        """
        checkpoint = restore_checkpoint(self.state(), folder, identity=identity)
        if checkpoint is not None:
            self.resume(checkpoint.counters)
            self.steps = checkpoint.counters["steps"]
            self.skipped = checkpoint.counters["skipped"]
            self.learner.fresh = False
            if self.learner.policy.bank is not None:
                self.learner.policy.bank.restart()
        return checkpoint

    def state(self) -> TrainingState:
        """Return everything that changes while this rank learns, for checkpoints."""
        policy, teacher = self.learner.policy, self.objective.moving_teacher
        weights = {f"{WEIGHTS}{n}": local(p) for n, p in policy.named_parameters().items()}
        if policy.bank is not None and (keys_GPC := policy.bank.keys) is not None:
            weights[f"{WEIGHTS}{KEYS}"] = keys_GPC
        if self.critic is not None:
            weights |= {f"{CRITIC}{n}": t for n, t in self.critic.named_tensors().items()}
        if teacher is not None:
            weights |= {f"{TEACHER}{n}": t for n, t in teacher.named_tensors().items()}
        for penalty in self.penalties:
            tensors = penalty.tensors().items()
            weights |= {f"{RETENTION}{penalty.name}/{name}": t for name, t in tensors}
        return TrainingState(
            weights=weights,
            optimizer=self.optimizer,
            counters={"steps": self.steps, "skipped": self.skipped, **self.counters()},
            ranks=self.learner.ranks,
            device=self.learner.device,
        )

    @property
    def _version(self) -> str | None:
        """Name under which engines sample exactly these weights; None once the weights have moved."""
        return self.learner.version if self.learner.fresh else None

    def _check_parity(self, gap: float) -> None:
        tolerance = self.learner.tolerance
        if not gap <= tolerance:
            raise ParityError(
                f"engine and learner disagree by {gap:.3g} nats on a sampled token, tolerance "
                f"{tolerance:g}",
                where="weight sync",
                cause="an engine sampled with other weights, another temperature or another precision",
                remedy="report the model and engine version; rollouts.probe_tolerance sets the tolerance",
            )

"""The learner: one `update` per batch of rows, under KL toward earlier snapshots.

One optimizer step for every mini-batch of every epoch, or none where a gradient is not finite. Where
the engines hold the learner's weights, the sampler's logprobs and the learner's are two computations of
the same number: the first pass over a batch compares them over all its tokens, which proves the last
weight sync on the way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from align.algorithms import divergences as kl
from align.algorithms.micro_batch import MicroBatch
from align.algorithms.rows import Batch, Row
from align.config.campaign import PolicyConfig, RoundSettings
from align.errors import NonFiniteError, ParityError
from align.learner.batching import Denominators, by_row, cost, even_passes, to_tensors
from align.learner.checkpoint import Checkpoint, restore_checkpoint, save_checkpoint
from align.learner.critic import Critic, make_critic
from align.learner.model.footprint import tokens_that_fit
from align.learner.model.policy import Policy
from align.learner.objective import Objective, gap_of
from align.learner.optimizer import add_group, learning_rate, make_optimizer, set_learning_rates
from align.learner.penalty import LearnerView, MakePenalties, Penalty
from align.learner.ranks.allocation import keep_freed_memory
from align.learner.ranks.lanes import Gradients, Lanes, lanes_for
from align.learner.ranks.ranks import SOLO, Ranks
from align.learner.ranks.sharding import local, whole
from align.learner.reference_cache import ReferenceCache
from align.learner.references import ReferenceModels, References
from align.learner.teachers.slow_teacher import SlowTeacher
from rollouts.engines.protocol import WeightUpdate
from rollouts.machine.processor import quickest_dtype
from rollouts.types import SnapshotId

T = TypeVar("T")
Metrics = dict[str, float]
MAX_SKIPPED_STEPS = 3
"""Non-finite steps in a row before the round fails."""
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest allowed |engine - learner| logprob, in nats."""
MICRO_BATCH_TOKENS = {"cpu": 2600, "cuda": 16384}
"""Padded tokens of one forward pass unless the campaign says otherwise; on a CPU large models get fewer."""


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
        config = config.without_auto(
            quickest_dtype("cuda" if self.device.type == "cuda" else "cpu")
        )
        self.ranks = ranks
        self.policy = Policy(base, config, device=self.device, ranks=ranks)
        self._pass_tokens = MICRO_BATCH_TOKENS[self.device.type]
        if self.device.type == "cpu":
            self._pass_tokens = tokens_that_fit(self.policy.text_config, self._pass_tokens)
        self.lanes = Lanes(self._num_lanes(), config.threads)
        self.anchors = ReferenceModels(self.policy, folder_of)
        self.critic: Critic | None = None
        self.slow_teacher: SlowTeacher | None = None
        self.penalties: Sequence[Penalty] = ()
        self.reference_cache = ReferenceCache()
        self._base, self._folder_of, self._scratch = base, folder_of, scratch
        self._version: str | None = ""
        self.tolerance = tolerance or TOLERANCE[config.dtype]

    def begin(
        self,
        spec: RoundSettings,
        references: References,
        *,
        num_steps: int,
        seed: int,
        penalties: MakePenalties,
    ) -> None:
        """Take the weights that the round begins with and start its optimizer.

        Args:
            num_steps: updates to come, for the learning rate's schedule.
            penalties: builds what holds the policy to earlier snapshots.
        """
        self.penalties = self._make_penalties(spec, references, seed, penalties)
        torch.manual_seed(seed)
        self._start(references)
        self._spec = spec
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
        self.slow_teacher = self._make_slow_teacher(spec, references)
        self._objective = Objective(
            policy=self.policy,
            anchors=self.anchors,
            critic=self.critic,
            spec=spec,
            references=references,
            penalties=self.penalties,
            slow_teacher=self.slow_teacher,
        )

    def _make_penalties(
        self, spec: RoundSettings, references: References, seed: int, make: MakePenalties
    ) -> Sequence[Penalty]:
        """Build the round's penalties, which may load earlier weights into the policy meanwhile."""
        view = LearnerView(
            spec=spec,
            references=references,
            models=self.anchors,
            policy=self.policy,
            ranks=self.ranks,
            weights_of=partial(self._weights_of, seed),
        )
        penalties = make(view)
        for penalty in penalties:
            penalty.before_round()
        return penalties

    def _weights_of(self, seed: int, snapshot: SnapshotId) -> dict[str, Tensor]:
        """Load a snapshot and return copies of its trained weights; of sharded ones this rank's part.

        Args:
            seed: the round's, so that a fresh adapter over the base is the one that the round begins with.
        """
        torch.manual_seed(seed)
        self.load(snapshot)
        named = self.policy.named_parameters()
        return {name: local(parameter).detach().clone() for name, parameter in named.items()}

    def _make_slow_teacher(self, spec: RoundSettings, references: References) -> SlowTeacher | None:
        follow, named = spec.algorithm.teacher_follows, spec.algorithm.teacher_snapshot
        if follow is None or named is None:
            return None
        return SlowTeacher(self.anchors.copy(references.named(named)), self.policy, follow)

    def _num_lanes(self) -> int:
        """Side by side only where no pass changes what another sees: ranks wait for each other, adapters
        are switched on one base, and padded models change their attention with the rows' length."""
        alone = self.ranks.size == 1 and self.policy.config.lora is None and self.policy.packs
        if self.device.type != "cpu" or not alone:
            return 1
        trained = sum(parameter.numel() for parameter in self.policy.parameters())
        return lanes_for(trained, self.policy.config.threads)

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

    def write_artifacts(self, folder: Path, rows: Sequence[Row]) -> None:
        """Write what each penalty keeps of the accepted policy, which the learner holds, for later rounds.

        A penalty's tensors go into ``NAME.safetensors``; there is no file where it keeps none. Of several
        ranks the first writes, and all must call.

        Args:
            rows: samples of the accepted policy.
        """
        from safetensors.torch import save_file

        for penalty in self.penalties:
            kept = penalty.after_accept(rows)
            tensors = {name: tensor.contiguous() for name, tensor in kept.items()}
            if tensors and self.ranks.rank == 0:
                folder.mkdir(parents=True, exist_ok=True)
                save_file(tensors, folder / f"{penalty.name}.safetensors")

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
        trained = [p for group in self._optimizer.param_groups for p in group["params"]]
        gradients, over = Gradients(trained, self.lanes.count), Denominators.of(batch)
        sums: defaultdict[str, float] = defaultdict(float)
        gap = 0.0
        for rows, moving in self._by_effect(batch.rows):
            learn = partial(self._learn, gradients if moving else None, over)
            for difference, parts in self._each_pass(rows, learn, self._budget()):
                gap = max(gap, difference)
                for name, value in parts.items():
                    sums[name] += value
        gradients.collect()
        gap, found = self.ranks.max(gap), self.ranks.sum(sums)
        self._check_parity(gap)
        metrics = {**found, **self._step(), "parity/max_abs_diff": gap}
        for penalty in self.penalties:
            metrics |= penalty.after_step(found)
        return metrics

    def _learn(
        self,
        gradients: Gradients | None,
        over: Denominators,
        lane: int,
        micro: MicroBatch,
        counts: bool,
    ) -> tuple[float, Metrics]:
        """Gap and metrics of one pass; its gradient, if there is one to take, goes into its lane."""
        with self.policy.passing(learns=gradients is not None):
            with torch.set_grad_enabled(gradients is not None):
                made = self._objective.measure(micro, over, self._version)
            if gradients is not None:
                gradients.add(lane, made.loss if counts else made.loss * 0.0)
        return made.gap, {name: float(value) for name, value in made.metrics.items()}

    def _each_pass(
        self, rows: Sequence[Row], work: Callable[[int, MicroBatch, bool], T], budget: int
    ) -> list[T]:
        """``work(lane, micro-batch, whether it counts)`` over this rank's share of the forward passes;
        the results of those that count."""
        passes = even_passes(rows, budget, self.lanes.count, packed=self.policy.packs)
        own = [(passes[index], counts) for index, counts in self.ranks.deal(len(passes))]

        def run(lane: int, one: tuple[list[Row], bool]) -> T:
            some, counts = one
            return work(lane, to_tensors(some).to(self.device), counts)

        lanes = self.lanes
        if lanes.count > 1 and not self.anchors.hold(self._objective.snapshots(rows)):
            lanes = Lanes()
        found = lanes.each(run, own, [cost(some) for some, _ in own])
        return [result for result, (_, counts) in zip(found, own, strict=True) if counts]

    def _budget(self) -> int:
        """Return the padded tokens of a pass; all lanes hold theirs at a time, in memory and in caches."""
        return (self._spec.optimizer.micro_batch_tokens or self._pass_tokens) // self.lanes.count

    def _by_effect(self, rows: Sequence[Row]) -> tuple[tuple[list[Row], bool], ...]:
        """Rows that can move the policy, and those that cannot: these are measured, at a third of
        the cost. Groups whose rewards are all equal are the usual case late in a round."""
        sides: tuple[list[Row], list[Row]] = ([], [])
        for row in rows:
            sides[0 if self._objective.moves(row) else 1].append(row)
        return ((sides[0], True), (sides[1], False))

    def _step(self) -> Metrics:
        """The optimizer step, unless a gradient is not finite: then nothing moves, and it is counted.

        The critic's gradient is clipped on its own: a large one must not shrink the policy's. While the
        critic warms up, a policy without gradients is one that the optimizer passes over.
        """
        chosen = self._spec.optimizer
        trained = self.policy.named_parameters()
        self.ranks.add_gradients(trained.values())
        penalties = self._penalize(trained)
        norms = {"grad_norm": self._clip(trained.values())}
        if self.critic is not None:
            self.ranks.add_gradients(self.critic.parameters())
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
            if self.slow_teacher is not None:
                self.slow_teacher.move()
        else:
            self._skipped += 1
            if self._skipped >= MAX_SKIPPED_STEPS:
                raise NonFiniteError(
                    f"the gradient was not finite in {self._skipped} steps in a row",
                    where="learner",
                    cause=f"a learning rate of {lr:g} that is too high, or a model that overflows",
                    remedy="lower optimizer.lr, or set policy.dtype to float32",
                )
        return {**norms, **penalties, "lr": lr, "steps_skipped": float(self._skipped > 0)}

    def _penalize(self, trained: Mapping[str, nn.Parameter]) -> Metrics:
        """Add the gradients of penalties on the weights themselves; return the value of each penalty.

        Every rank adds them to gradients that were summed over the ranks before: to its own part of sharded
        weights, and to all of those that every rank has.
        """
        acting = [penalty for penalty in self.penalties if penalty.acts_on_weights]
        if not acting:
            return {}
        weights, gradients = {}, {}
        for name, parameter in trained.items():
            assert parameter.grad is not None, "every step begins with zeros"
            gradients[name] = local(parameter.grad)
            weights[name] = local(parameter).detach().requires_grad_()
            # The backward pass of a term adds to the parameter's own gradient in place.
            weights[name].grad = gradients[name]
        values: Metrics = {}
        for penalty in acting:
            total = torch.zeros((), device=self.device)
            for term in penalty.parameter_penalty(weights):
                term.backward()  # type: ignore[no-untyped-call]
                total += term.detach()
            values[f"retention/{penalty.name}"] = float(total)
        for penalty in acting:
            penalty.project(gradients)
        return self.ranks.sum(values) if self.policy.sharded else values

    def _clip(self, parameters: Iterable[nn.Parameter]) -> float:
        """Clip gradients that are summed over the ranks; return their norm before."""
        largest = self._spec.optimizer.max_grad_norm
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if (before := float(whole(norm))) > largest:
            torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
        return before

    def _prepared(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Rows, in their order, with what the algorithm needs to know of them before the first step, and
        marked stale where other weights than the learner's sampled them."""
        several = self._spec.optimizer.epochs * self._spec.optimizer.mini_batches > 1
        cache, temperature = self.reference_cache, self._objective.temperature
        ready: list[Row] = []
        by_needs: defaultdict[frozenset[str], list[int]] = defaultdict(list)
        for index, row in enumerate(rows):
            given = replace(row, stale=self._is_stale(row))
            needs: set[str] = {*self._spec.algorithm.needs_of(row), *(["start"] if several else [])}
            if "reference" in needs:
                found = cache.recall(given, self._objective.reference_of(row), temperature)
                needs -= {"reference"} if found else set()
                given = found or given
            ready.append(given)
            if needs:
                by_needs[frozenset(needs)].append(index)
        for asked, places in by_needs.items():
            fill = partial(self._fill, asked, {id(ready[index]): index for index in places})
            needy = [ready[index] for index in places]
            shares = self.ranks.gather(self._each_pass(needy, fill, self._budget()))
            for placed, gap in shares:
                self._check_parity(gap)
                for index, row in placed:
                    ready[index] = row
        if any(row.reference_logprobs_T for row in ready):
            cache.keep(ready, self._objective.reference_of(ready[0]), temperature)
        return self._spec.algorithm.complete(ready)

    def _fill(
        self,
        needs: Set[str],
        places: Mapping[int, int],
        lane: int,
        micro: MicroBatch,
        counts: bool,
    ) -> tuple[list[tuple[int, Row]], float]:
        """The rows of one pass with the columns they need, each with its place in the batch; its gap."""
        with self.policy.passing(learns=False):
            filled, gap = self._objective.filled(micro, needs, self._version)
        placed = [(places[id(row)], full) for row, full in zip(micro.rows, filled, strict=True)]
        return placed, gap

    def _is_stale(self, row: Row) -> bool:
        return bool(row.sampler_logprobs_T) and row.policy != self._version

    @torch.no_grad()
    def divergence(self, rows: list[Row], snapshot: SnapshotId) -> float:
        """Mean full-vocabulary KL(policy || snapshot) over the rows' tokens, in nats: a drift meter.

        Raises:
            ParityError: these weights sampled the rows, and the engine says other logprobs.
        """
        micro = to_tensors(rows).to(self.device)
        with self.policy.passing(learns=False):
            own = self._objective.outputs(micro)
        self._check_parity(gap_of(micro, own, self._version))
        anchor = self.anchors.outputs(snapshot, micro, own.temperature)
        return float(own.divergence(anchor, kl.full).mean())

    @torch.no_grad()
    def completion_logprobs(self, rows: list[Row]) -> list[tuple[float, ...]]:
        """Logprobs at temperature 1 of each row's completion tokens: the learner's half of a probe."""
        micro = to_tensors(rows).to(self.device)
        with self.policy.passing(learns=False):
            return by_row(self._objective.outputs(micro, temperature=1.0).logprobs_N, micro)

    def _check_parity(self, gap: float) -> None:
        if not gap <= self.tolerance:
            raise ParityError(
                f"engine and learner disagree by {gap:.3g} nats on a sampled token, tolerance "
                f"{self.tolerance:g}",
                where="weight sync",
                cause="an engine sampled with other weights, another temperature or another precision",
                remedy="report the model and engine version; rollouts.probe_tolerance sets the tolerance",
            )

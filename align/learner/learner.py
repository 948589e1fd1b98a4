"""The learner: one `update` per batch of rollouts, under KL toward earlier snapshots.

The objective of a step, each mean over its own tokens (``c``: new, past, general prompts):

    loss = algorithm(new tokens) + sum_c sum_k beta_{c,k} * mean_{tokens of c} KL(pi || anchor_{c,k})

Exactly one optimizer step per update, or none at all when a gradient is not finite. Strictly
on-policy, the sampler's logprobs and the learner's are two computations of the same number: every
update compares them over all its tokens, which proves the last weight sync on the way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from math import inf
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from align.config import AnchorConfig, OptimizerConfig, PolicyConfig, RoundSettings
from align.errors import NonFiniteError, ParityError
from align.learner import kl
from align.learner.anchors import AnchorBank, BetaController, References
from align.learner.batch import Batch, MicroBatch, Row, micro_batches, to_tensors
from align.learner.losses import PolicyInputs
from align.learner.policy import Policy, completion_logits
from rollouts.engine import WeightUpdate
from rollouts.types import SnapshotId

Metrics = dict[str, float]
MAX_SKIPPED_STEPS = 3
"""Non-finite steps in a row before the round fails."""
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest allowed |engine - learner| logprob, in nats."""


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
        self._version = ""
        self.tolerance = tolerance or TOLERANCE[config.dtype]

    def begin(
        self, spec: RoundSettings, references: References, *, num_steps: int, seed: int
    ) -> None:
        """Take the parent's weights and start the round's optimizer."""
        torch.manual_seed(seed)
        self.load(references.parent)
        self._spec, self._references = spec, references
        self._num_steps, self._steps, self._skipped = num_steps, 0, 0
        chosen = spec.optimizer
        self._optimizer = torch.optim.AdamW(
            self.policy.parameters(),
            lr=chosen.lr,
            betas=chosen.betas,
            eps=chosen.eps,
            weight_decay=chosen.weight_decay,
        )
        self._anchors: dict[str, list[tuple[AnchorConfig, BetaController]]] = {
            source: [(term, BetaController(term)) for term in getattr(spec.anchors, source)]
            for source in ("new", "past", "general")
        }

    def load(self, snapshot: SnapshotId) -> None:
        """Make the policy equal to a snapshot."""
        self.policy.load(self._folder_of(snapshot))

    def weights(self, version: str) -> WeightUpdate:
        """The current weights, for the engines; what these sample under ``version`` is on-policy."""
        self._version = version
        return self.policy.weights(version, self._scratch)

    def update(self, batch: Batch) -> Metrics:
        """One optimizer step on one batch; returns metrics, all plain floats."""
        started = perf_counter()
        for parameter in self.policy.parameters():
            parameter.grad = torch.zeros_like(parameter)
        sums: defaultdict[str, float] = defaultdict(float)
        gap = 0.0
        for rows, moving in self._by_effect(batch):
            for micro in micro_batches(rows, self._spec.optimizer.micro_batch_tokens):
                with torch.set_grad_enabled(moving):
                    loss, parts, difference = self._loss(micro.to(self.device), batch)
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
        return {**metrics, "time/update_s": perf_counter() - started}

    def _by_effect(self, batch: Batch) -> tuple[tuple[Batch, bool], ...]:
        """Rows that can move the policy, and those that cannot: these are measured, at a third of
        the cost. Groups whose rewards are all equal are the usual case late in a round."""
        sides: tuple[list[Row], list[Row]] = ([], [])
        for row in batch.rows:
            learns = row.advantage is not None and self._spec.algorithm.moves(row.advantage)
            sides[0 if learns or self._anchors[row.source] else 1].append(row)
        return tuple((Batch(rows=tuple(side)), side is sides[0]) for side in sides)

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
        return {"grad_norm": float(norm), "lr": lr, "steps_skipped": float(self._skipped > 0)}

    def _loss(self, micro: MicroBatch, batch: Batch) -> tuple[Tensor, dict[str, Tensor], float]:
        """Loss and summable metrics of one micro-batch, and its largest engine-learner gap."""
        logprobs_NV = self._logprobs(micro)
        logprobs_N = logprobs_NV.gather(-1, micro.targets_N[:, None])[:, 0]
        fresh_N = micro.select([row.policy == self._version for row in micro.rows])
        differences_N = (logprobs_N.detach() - micro.sampler_logprobs_N)[fresh_N].abs()
        # A NaN would lose every comparison with a number, and the check would pass.
        gap = float(differences_N.nan_to_num(nan=inf).max()) if fresh_N.any() else 0.0
        loss, metrics = self._policy_loss(micro, logprobs_N, batch)
        for source, terms in self._anchors.items():
            for term, controller in terms:
                penalty, measured = self._anchor_loss(micro, logprobs_NV, source, term, batch)
                loss = loss + controller.beta * penalty
                if measured is not None:
                    metrics[f"kl/{source}/{term.to}"] = measured
        new_N = micro.select([row.source == "new" for row in micro.rows])
        with torch.no_grad():
            entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)[new_N]
            metrics["entropy"] = entropy_N.sum() / max(batch.class_tokens["new"], 1)
        return loss, metrics, gap

    def _policy_loss(
        self, micro: MicroBatch, logprobs_N: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        learns_N = micro.select([row.advantage is not None for row in micro.rows])
        advantages_B = torch.tensor(
            [row.advantage or 0.0 for row in micro.rows], device=self.device
        )
        if not learns_N.any():
            return logprobs_N.sum() * 0.0, {}
        inputs = PolicyInputs(
            logprobs_N=logprobs_N[learns_N],
            # Strictly on-policy the learner's own logprobs are the sampler's, without its rounding.
            sampler_logprobs_N=logprobs_N[learns_N].detach(),
            advantages_N=advantages_B[micro.rows_N][learns_N],
            rows_N=micro.rows_N[learns_N],
        )
        loss, metrics = self._spec.algorithm.loss(
            inputs,
            num_tokens=batch.num_advantage_tokens,
            num_sequences=batch.num_advantage_rows,
        )
        return loss, {**metrics, "loss/policy": loss.detach()}

    def _anchor_loss(
        self, micro: MicroBatch, logprobs_NV: Tensor, source: str, term: AnchorConfig, batch: Batch
    ) -> tuple[Tensor, Tensor | None]:
        """One anchor's penalty over the rows of one class: a forward pass for each snapshot that holds
        some of them, one penalty for all."""
        holders: dict[SnapshotId, list[int]] = {}
        for index, row in enumerate(micro.rows):
            if row.source == source:
                holders.setdefault(self._references.resolve(term.to, row), []).append(index)
        if not holders:
            return logprobs_NV.new_zeros(()), None
        held = [[micro.rows[i] for i in indices] for indices in holders.values()]
        anchor_NV = torch.cat(
            [
                self._log_softmax(self.anchors.logits(snapshot, to_tensors(rows).to(self.device)))
                for snapshot, rows in zip(holders, held, strict=True)
            ]
        )
        order = [i for indices in holders.values() for i in indices]
        if order != list(range(len(micro.rows))):
            logprobs_NV = logprobs_NV[micro.tokens_of(order)]
            micro = to_tensors([row for rows in held for row in rows]).to(self.device)
        value, meter = penalty_of(term.estimator, logprobs_NV, anchor_NV, micro)
        denominator = max(batch.class_tokens[source], 1)
        return value / denominator, meter / denominator

    def _logprobs(self, micro: MicroBatch) -> Tensor:
        return self._log_softmax(completion_logits(self.policy.model, micro, self.policy.dtype))

    def _log_softmax(self, logits_NV: Tensor) -> Tensor:
        """Under the sampling temperature: the distribution that completions are drawn from."""
        return (logits_NV / self._spec.sampling.temperature).log_softmax(-1)

    @torch.no_grad()
    def divergence(self, rows: list[Row], snapshot: SnapshotId) -> float:
        """Mean full-vocabulary KL(policy || snapshot) over the rows' tokens, in nats: a drift meter."""
        micro = to_tensors(rows).to(self.device)
        anchor_NV = self._log_softmax(self.anchors.logits(snapshot, micro))
        return float(kl.full(self._logprobs(micro), anchor_NV).mean())

    @torch.no_grad()
    def completion_logprobs(self, rows: list[Row]) -> list[list[float]]:
        """Logprobs at temperature 1 of each row's completion tokens: the learner's half of a probe."""
        micro = to_tensors(rows).to(self.device)
        logprobs_NV = completion_logits(self.policy.model, micro, self.policy.dtype).log_softmax(-1)
        flat = logprobs_NV.gather(-1, micro.targets_N[:, None])[:, 0].tolist()
        lengths = [len(row.completion_ids) for row in rows]
        starts = [sum(lengths[:i]) for i in range(len(rows))]
        return [flat[s : s + n] for s, n in zip(starts, lengths, strict=True)]

    def _check_parity(self, gap: float) -> None:
        if not gap <= self.tolerance:
            raise ParityError(
                f"engine and learner disagree by {gap:.3g} nats on a sampled token, tolerance "
                f"{self.tolerance:g}",
                where="weight sync",
                cause="an engine sampled with other weights, another temperature or another precision",
                remedy="report the model and engine version; rollouts.probe_tolerance sets the tolerance",
            )


def learning_rate(optimizer: OptimizerConfig, step: int, num_steps: int) -> float:
    """Linear warm-up, then a linear fall to ``final_lr * lr`` at the last step.

    >>> chosen = OptimizerConfig(lr=0.1, warmup_steps=1, final_lr=0.5)
    >>> [round(learning_rate(chosen, step, 5), 4) for step in range(5)]
    [0.05, 0.0875, 0.075, 0.0625, 0.05]
    """
    warm = min(1.0, (step + 1) / (optimizer.warmup_steps + 1))
    progress = step / max(num_steps - 1, 1)
    fallen = max(0.0, progress - optimizer.decay_from) / (1.0 - optimizer.decay_from)
    return optimizer.lr * warm * (1.0 - fallen * (1.0 - optimizer.final_lr))


def penalty_of(
    estimator: str, logprobs_NV: Tensor, anchor_NV: Tensor, rows: MicroBatch
) -> tuple[Tensor, Tensor]:
    """Summed penalty with the estimator's gradient, and summed KL to report (detached)."""
    if estimator in kl.VOCABULARY_ESTIMATORS:
        total = kl.VOCABULARY_ESTIMATORS[estimator](logprobs_NV, anchor_NV).sum()
        return total, total.detach()
    own_N = logprobs_NV.gather(-1, rows.targets_N[:, None])[:, 0]
    anchor_N = anchor_NV.gather(-1, rows.targets_N[:, None])[:, 0]
    meter = kl.k3(own_N.detach(), anchor_N).sum()
    if estimator == "k1":
        return kl.k1_in_reward(own_N, anchor_N, rows.rows_N).sum(), meter
    return kl.TOKEN_ESTIMATORS[estimator](own_N, anchor_N).sum(), meter

"""KL terms toward earlier snapshots, on the tokens of each prompt class.

The penalty of a step, with ``c`` the classes of prompts (new, past, general) and ``k`` a class's anchors:

    sum_c sum_k beta_{c,k} * mean_{tokens of c} KL(pi || anchor_{c,k})

`BetaController` adjusts a beta that has a target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from math import exp, isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align.algorithms import divergences as kl
from align.algorithms.micro_batch import MicroBatch
from align.algorithms.outputs import Outputs
from align.algorithms.rows import Row
from align.config.retention.anchors import AnchorConfig
from align.config.retention.methods import KLAnchorsConfig
from align.learner.batching import Denominators, to_tensors
from align.learner.penalty import LearnerView
from align.learner.teachers.moving_copy import moving_copy
from align.retention.anchors.following import FollowingAnchor
from align.retention.base import RetentionMethod
from rollouts.types import SnapshotId

CLASSES = ("new", "past", "general")
"""Classes of prompts, each with anchors of its own."""


class KLAnchors(RetentionMethod[KLAnchorsConfig]):
    """Anchors of a round, each with the controller of its weight.

    If the algorithm takes the anchors of new prompts as its reference, they add no term here; those that
    follow still move.
    """

    def __init__(
        self, config: KLAnchorsConfig, view: LearnerView, artifact: Path | None = None
    ) -> None:
        super().__init__(config, view, artifact)
        self.terms: dict[str, list[tuple[AnchorConfig, BetaController]]] = {
            source: [(term, BetaController(term)) for term in getattr(config, source)]
            for source in CLASSES
        }
        self._is_reference = view.spec.algorithm.anchors_are_reference
        if self._is_reference:
            self.terms["new"] = []
        self._following: dict[str, FollowingAnchor] = {}
        self._steps = 0

    def before_round(self) -> None:
        """Copy the weights that moving anchors begin with."""
        view = self.view
        for source in CLASSES:
            for index, term in enumerate(getattr(self.config, source)):
                if term.follow is None:
                    continue
                name = f"{source}/{term.label}"
                copy = moving_copy(
                    view.models,
                    view.policy,
                    view.weights_of,
                    start=view.references.named(term.to),
                    follow=term.follow.share,
                    label=name,
                )
                where = f"anchors.{source}.{index}"
                self._following[name] = FollowingAnchor(term.follow, copy, where)

    def moving_references(self) -> Mapping[str, FollowingAnchor]:
        if not self._is_reference:
            return {}
        return {
            name.removeprefix("new/"): anchor
            for name, anchor in self._following.items()
            if name.startswith("new/")
        }

    def snapshots(self, row: Row) -> AbstractSet[SnapshotId]:
        frozen = [term.to for term, _ in self.terms.get(row.source, ()) if term.follow is None]
        return {self.view.references.resolve(to, row) for to in frozen}

    def moves(self, row: Row) -> bool:
        return bool(self.terms.get(row.source))

    def penalty(
        self, micro: MicroBatch, outputs: Outputs, over: Denominators
    ) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        for source, terms in self.terms.items():
            tokens = max(over.class_tokens.get(source, 0), 1)
            for term, controller in terms:
                sums = self._sums(micro, outputs, source, term)
                if sums is None:
                    continue
                penalty, meter = sums
                weighted = controller.beta * (penalty / self._count(over, source, term))
                yield weighted, {f"kl/{source}/{term.label}": meter / tokens}

    def after_step(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        betas = {}
        self._steps += 1
        for anchor in self.moving_references().values():
            anchor.after_step(self._steps, None)
        for source, terms in self.terms.items():
            for term, controller in terms:
                name = f"{source}/{term.label}"
                measured = metrics.get(f"kl/{name}")
                if measured is not None:
                    betas[f"beta/{name}"] = controller.beta
                    controller.observe(measured)
                if name in self._following:
                    self._following[name].after_step(self._steps, measured)
        return betas

    def after_batch(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        restarts = [anchor.after_batch(metrics) for anchor in self._following.values()]
        self.restarts_optimizer = any(restarts)
        return {f"moves/{name}": float(a.moves) for name, a in self._following.items()}

    def tensors(self) -> Mapping[str, Tensor]:
        return {
            f"{anchor}/{name}": tensor
            for anchor, following in self._following.items()
            for name, tensor in following.tensors().items()
        }

    def counters(self) -> Mapping[str, Any]:
        betas = {
            source: [controller.beta for _, controller in terms]
            for source, terms in self.terms.items()
        }
        following = {name: anchor.counters() for name, anchor in self._following.items()}
        return {"betas": betas, "anchor_steps": self._steps, "following": following}

    def resume(self, counters: Mapping[str, Any]) -> None:
        self._steps = counters.get("anchor_steps", 0)
        for source, betas in counters["betas"].items():
            for (_, controller), beta in zip(self.terms[source], betas, strict=True):
                controller.beta = beta
        for name, state in counters.get("following", {}).items():
            self._following[name].resume(state)

    def _count(self, over: Denominators, source: str, term: AnchorConfig) -> int:
        """Return the number that one anchor's summed penalty is divided by."""
        by_completion = self.view.spec.algorithm.in_reward_over == "completions"
        if by_completion and source == "new" and term.estimator == "k1":
            return over.new_completions
        return max(over.class_tokens.get(source, 0), 1)

    def _sums(
        self, micro: MicroBatch, outputs: Outputs, source: str, term: AnchorConfig
    ) -> tuple[Tensor, Tensor] | None:
        """Return one anchor's summed penalty and KL over the rows of one class; None if it has no rows.

        Each snapshot that any of the rows is compared with takes one forward pass.
        """
        holders: dict[SnapshotId, list[int]] = {}
        for index, row in enumerate(micro.rows):
            if row.source == source:
                snapshot = term.label
                if term.follow is None:
                    snapshot = self.view.references.resolve(term.to, row)
                holders.setdefault(snapshot, []).append(index)
        if not holders:
            return None
        pairs = []
        for snapshot, indices in holders.items():
            whole = len(indices) == len(micro.rows)
            part, policy, weights_N = micro, outputs, self._importance(micro, term)
            if not whole:
                tokens_M = micro.tokens_of(indices)
                rows = [micro.rows[index] for index in indices]
                part = to_tensors(rows).to(self.view.policy.device)
                policy = outputs.at(tokens_M)
                weights_N = None if weights_N is None else weights_N[tokens_M]
            following = self._following.get(f"{source}/{snapshot}")
            if following is not None:
                anchor = following.outputs(part, outputs.temperature)
            else:
                anchor = self.view.models.outputs(snapshot, part, outputs.temperature)
            pairs.append(penalty_of(term.estimator, policy, anchor, part, weights_N))
        penalty, meter = (torch.stack(side).sum() for side in zip(*pairs, strict=True))
        return penalty, meter

    def _importance(self, micro: MicroBatch, term: AnchorConfig) -> Tensor | None:
        """Return the importance weights of one KL term; None if all are 1.

        An estimator over the vocabulary sums over all next tokens itself. Only the text before them is
        stale, which the weight of a whole sequence corrects and the weights of tokens do not.
        """
        exact = term.estimator in kl.VOCABULARY_ESTIMATORS
        level = self.view.spec.importance.level
        return None if exact and level != "sequence" else micro.weights_N


class BetaController:
    """Controller that adjusts one anchor's weight so that its KL stays near a target.

    ``log beta += rate * clip(kl / target - 1, -1, 1)`` after every step. Source: the adaptive KL
    coefficient of Ziegler et al. 2019, arXiv 1909.08593, section 2.2, in log space so that beta stays
    positive. Without a target beta is constant.
    """

    def __init__(self, config: AnchorConfig) -> None:
        self._config, self.beta = config, config.beta

    def observe(self, kl_per_token: float) -> None:
        """Adjust beta by this step's measured KL, in nats per token."""
        # A step that was skipped has no KL, and a NaN would stay in beta.
        if self._config.target is None or not isfinite(kl_per_token):
            return
        error = min(max(kl_per_token / self._config.target - 1.0, -1.0), 1.0)
        low, high = self._config.bounds
        self.beta = min(max(self.beta * exp(self._config.rate * error), low), high)


def penalty_of(
    estimator: str,
    policy: Outputs,
    anchor: Outputs,
    micro: MicroBatch,
    weights_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the summed penalty with the estimator's gradient, and the summed KL to report (detached).

    Args:
        weights_N: importance of every token, for samples of other weights than the policy's; None if all
            are 1.
    """
    if estimator in kl.VOCABULARY_ESTIMATORS:
        total_N = policy.divergence(anchor, kl.VOCABULARY_ESTIMATORS[estimator])
        total = (total_N if weights_N is None else total_N * weights_N).sum()
        return total, total.detach()
    meter_N = kl.k3(policy.logprobs_N.detach(), anchor.logprobs_N)
    if estimator == "k1":
        penalty_N = kl.k1_in_reward(policy.logprobs_N, anchor.logprobs_N, micro.rows_N)
    else:
        penalty_N = kl.TOKEN_ESTIMATORS[estimator](policy.logprobs_N, anchor.logprobs_N)
    if weights_N is not None:
        penalty_N, meter_N = penalty_N * weights_N, meter_N * weights_N
    return penalty_N.sum(), meter_N.sum()

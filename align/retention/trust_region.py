"""Trust region: every step moves what the policy says as far as any other, whatever model it moves.

A learning rate suits one model: at the same rate a narrower model or an adapter moves less, and another may
collapse. Here the optimizer gives a step its direction, and the KL that the step has caused its length. To
second order the KL grows with the square of the length, so one measurement tells the factor:

    delta <- c delta,    c = s sqrt(kl / KL(before || after)),    c <= 8

``s`` is the step's learning rate as a share of the peak, so that warm-up and decay stay. The KL is the mean
of k3 over tokens of the batch, which the policy before the step, or one close to it, sampled. Source: the
step length of TRPO (Schulman et al. 2015, arXiv 1502.05477, appendix C) with AdamW's direction in the place
of the natural gradient's, and without its line search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, sqrt
from typing import TYPE_CHECKING

import torch

from align.algorithms.divergences import k3
from align.config.retention.methods import TrustRegionConfig
from align.learner.batching import micro_batches
from align.learner.model.policy import completion_outputs
from align.learner.penalty import WeightStep
from align.retention.base import RetentionMethod

if TYPE_CHECKING:
    from torch import Tensor

    from align.algorithms.rows import Row

LARGEST = 8.0
"""Largest factor of a step: so far beyond what was measured the square says little."""
PASS_TOKENS = 2600
"""Padded tokens of one pass."""


class TrustRegion(RetentionMethod[TrustRegionConfig]):
    """Length of each step, by the KL that the optimizer's own step has caused."""

    follows_steps = True
    _rows: Sequence[Row] = ()
    _kl = 0.0
    _factor = 1.0

    def before_batch(self, rows: Sequence[Row]) -> None:
        sampled = [row for row in rows if row.source == "new" and row.sampler_logprobs_T]
        self._rows = sampled[:: max(1, len(sampled) // self.config.rows)][: self.config.rows]

    def change_update(self, step: WeightStep) -> None:
        if not self._rows:
            return
        after_N, moves = self._logprobs(), step.moves()
        for name, before in step.before.items():
            step.weights[name].copy_(before)
        self._kl = float(k3(self._logprobs(), after_N).mean())
        self._factor = factor_of(self._kl, self.config.kl, step.share)
        step.replace_moves({name: move * self._factor for name, move in moves.items()})

    def after_step(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        return {"trust_region/kl": self._kl, "trust_region/factor": self._factor}

    @torch.no_grad()
    def _logprobs(self) -> Tensor:
        """Return the logprobs of the measured rows' tokens; every rank computes all of them."""
        policy = self.view.policy
        policy.named_parameters()  # Ranks gather their parts anew.
        parts = []
        for micro in micro_batches(self._rows, PASS_TOKENS, packed=policy.packs):
            policy.open_gates(micro.rows)
            with policy.passing(learns=False):
                outputs = completion_outputs(
                    policy.model,
                    micro.to(policy.device),
                    dtype=policy.dtype,
                    temperature=self.view.spec.sampling.temperature,
                )
                parts.append(outputs.logprobs_N)
        policy.named_parameters()  # What was gathered here is of before, once the weights are written.
        return torch.cat(parts)


def factor_of(kl: float, wanted: float, share: float) -> float:
    """Return the factor of a step that would bring its KL to ``share ** 2 * wanted``.

    >>> factor_of(0.004, 0.001, share=1.0), factor_of(0.001, 0.004, share=0.5)
    (0.5, 1.0)

    A KL of zero tells no factor, as after a step that moved nothing:

    >>> factor_of(0.0, 0.001, share=1.0)
    1.0
    """
    if not (isfinite(kl) and kl > 0.0):
        return 1.0
    return min(share * sqrt(wanted / kl), LARGEST)

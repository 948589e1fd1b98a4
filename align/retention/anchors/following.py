"""Anchor that moves after the policy within its round.

    anchor <- anchor + share * (policy - anchor)    at every `every`-th step, where KL passes `above`, and
                                                    where a metric has stopped improving

With a share of 1 this is the hard reset of the reference every R steps; after `after_stagnation` updates
without a gain, and with `restart_optimizer`, it is ProRL's, Liu et al. 2025, arXiv 2505.24864, section 3;
with .6 the soft update of TR-DPO, Gorbatovski et al. 2024, arXiv 2404.09656, equation 3, for a KL term or
for DPO's reference; at every step with a small share the moving average of WARP, Rame et al. 2024, arXiv
2406.16768, section 3.1. Several with different shares are the cheap form of a policy consolidation cascade,
Kaplanis et al. 2019, arXiv 1902.00255.

The anchor is a copy of the policy's weights in float32, an adapter where snapshots are adapters. A
checkpoint holds it, and no snapshot does: the next round begins with its parent again.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from math import isfinite
from statistics import fmean
from typing import Any

from torch import Tensor

from align.algorithms.micro_batch import MicroBatch
from align.algorithms.outputs import Outputs
from align.config.retention.anchors import FollowConfig
from align.errors import UserError
from align.learner.teachers.moving_copy import MovingCopy
from rollouts.errors import nearest
from rollouts.types import SnapshotId

_SERIALS = count()


class FollowingAnchor:
    """Moving copy of the policy's weights.

    Args:
        config: when it moves.
        copy: weights that move.
        where: path of the settings in the campaign file, for messages.
    """

    def __init__(self, config: FollowConfig, copy: MovingCopy, where: str) -> None:
        self._config, self._copy, self._where = config, copy, where
        self._serial, self._moves = next(_SERIALS), 0
        self._recent: list[float] = []
        """Values of the metric since the last move for stagnation, the newest last."""

    @property
    def name(self) -> SnapshotId:
        """Name that no other weights have in this process."""
        return f"moving:{self._serial}/{self._moves}"

    @property
    def moves(self) -> int:
        """Number of moves in this round."""
        return self._moves

    def outputs(self, micro: MicroBatch, temperature: float) -> Outputs:
        """Run the anchor over the completion tokens, without gradient."""
        return self._copy.outputs(micro, temperature)

    def after_step(self, step: int, kl_per_token: float | None) -> None:
        """Move the anchor where that is due after the step with this number, counted from 1."""
        above, every = self._config.above, self._config.moves_every
        measured = kl_per_token is not None and isfinite(kl_per_token)
        spike = above is not None and measured and (kl_per_token or 0.0) > above
        if spike or (every is not None and step % every == 0):
            self._move()

    def after_batch(self, metrics: Mapping[str, float]) -> bool:
        """Move the anchor if the metric has stagnated; tell if it has, and the optimizer is to restart.

        Raises:
            UserError: the round has no such metric.
        """
        patience = self._config.after_stagnation
        if patience is None:
            return False
        value = metrics.get(self._config.metric)
        if value is None:
            self._check_known(metrics)
        elif isfinite(value):
            self._recent = [*self._recent, value][-2 * patience :]
        if not stagnates(self._recent, patience, self._config.gain, self._config.goal):
            return False
        self._recent = []
        self._move()
        return self._config.restart_optimizer

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the anchor's weights by name."""
        return self._copy.named_tensors()

    def counters(self) -> dict[str, Any]:
        """Return what changes from step to step besides the weights."""
        return {"moves": self._moves, "recent": self._recent}

    def resume(self, counters: Mapping[str, Any]) -> None:
        """Take over the counters of a checkpoint."""
        self._moves, self._recent = counters["moves"], list(counters["recent"])

    def _move(self) -> None:
        self._copy.move()
        self._moves += 1

    def _check_known(self, metrics: Mapping[str, float]) -> None:
        """Raise for a metric that the first update lacks; later ones may, as where all rewards failed."""
        metric = self._config.metric
        if not self._recent and not self._moves and not metric.startswith("reward/"):
            raise UserError(
                f"the round reports no metric {metric!r}",
                where=f"{self._where}.follow.metric",
                cause="its algorithm does not measure it, or the name is misspelt",
                remedy=nearest(metric, sorted(metrics)),
            )


def stagnates(recent: list[float], patience: int, gain: float, goal: str) -> bool:
    """Tell if the newest ``patience`` values are on average no better than those before them.

    >>> stagnates([0.1, 0.3, 0.2, 0.2], 2, 0.0, "higher"), stagnates([0.1, 0.3, 0.4], 2, 0.0, "higher")
    (True, False)
    """
    if len(recent) < 2 * patience:
        return False
    before, newest = fmean(recent[-2 * patience : -patience]), fmean(recent[-patience:])
    return (newest - before if goal == "higher" else before - newest) <= gain

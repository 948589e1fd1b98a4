"""Straight line with a share of its own for each block of decoder layers.

    theta_k(a)   = theta_to,k + a_k * (theta_trained,k - theta_to,k)          block k = 1 ... K
    a            = argmin of -log pi_theta(a)(y | x)      where mean(a) = share and 0 <= a_k <= 1

Lin et al. 2023, arXiv 2309.06256, section 5 (heterogeneous model averaging). Of all merges with one mean
share it takes the one under which the trained policy's own answers y to the round's prompts are likeliest;
these stand in for the paper's reward. No reward is asked and no item of a suite is read, so the gate stays
as strict as before. Weights outside the layers take the mean share. The paper's software learns logits of
the shares with Adam; here the K shares go down the slope in steps of fixed length that shrink to nothing,
projected on the constraint, and the best that was met is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from align.algorithms.outputs import Outputs
from align.algorithms.rows import Row
from align.config.mergers.settings import HMAMergeConfig
from align.learner.model.blend import between
from align.learner.model.policy import Policy
from align.learner.ranks.ranks import Ranks
from align.learner.ranks.sharding import local
from align.learner.references import FolderOf
from align.retention.mergers.base import WeightStack
from align.retention.mergers.blocks import block_of, num_layers
from align.retention.mergers.merge import Merge
from align.retention.samples import sample_gradients
from rollouts.types import SnapshotId

FIRST_STEP = 0.5
"""Length of the fit's first step, as a share of the mean share."""


def hma(stack: WeightStack, config: HMAMergeConfig) -> Tensor:
    """Return the point of the block's line; weights of no layer take the mean share."""
    block = block_of(stack.name, stack.layers, config.blocks)
    share = stack.share if block is None else stack.block_shares[block]
    return between(stack.anchor, stack.trained, share)


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockFit:
    """Fit of the shares of all blocks to answers of the trained policy."""

    merge: Merge
    config: HMAMergeConfig
    rows: Sequence[Row]
    """Answers of the trained policy."""

    @property
    def snapshots(self) -> tuple[SnapshotId, ...]:
        """Snapshots that the fit reads."""
        return self.merge.snapshots

    def __call__(self, policy: Policy, ranks: Ranks, folder_of: FolderOf) -> tuple[float, ...]:
        """Return the fitted shares; the policy is left at the last that were tried."""
        config = self.config
        line = Line.read(self.merge, config, policy, folder_of)
        shares = [config.share] * config.blocks
        best: tuple[float, list[float]] | None = None
        for step in range(config.steps):
            line.move(policy, shares, config.share)
            loss, slopes = line.slopes(policy, self.rows, ranks)
            if best is None or loss < best[0]:
                best = loss, shares
            mean = sum(slopes) / len(slopes)
            steepest = max(abs(slope - mean) for slope in slopes)
            if steepest == 0.0:
                break
            length = FIRST_STEP * config.share * (1.0 - step / config.steps)
            wanted = [
                share - length * (slope - mean) / steepest
                for share, slope in zip(shares, slopes, strict=True)
            ]
            shares = constrained(wanted, config.share)
        assert best is not None, "a fit has at least one step"
        return tuple(best[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """Trained weights and the way to them, by parameter name; of sharded weights this rank's part."""

    ends: Mapping[str, Tensor]
    ways: Mapping[str, Tensor]
    blocks: Mapping[str, int | None]
    num_blocks: int

    @classmethod
    def read(
        cls, merge: Merge, config: HMAMergeConfig, policy: Policy, folder_of: FolderOf
    ) -> Line:
        """Read both ends by loading the whole way and half of it, as an adapter's base has no factors."""

        def loaded(share: float) -> dict[str, Tensor]:
            shares = (share,) * config.blocks
            replace(merge, share=share, block_shares=shares).load(policy, merge.anchor, folder_of)
            parameters = policy.named_parameters()
            return {name: local(p).detach().clone() for name, p in parameters.items()}

        halves = loaded(0.5)
        ends = loaded(1.0)
        layers = num_layers(ends)
        return cls(
            ends=ends,
            ways={name: 2.0 * (end - halves[name]) for name, end in ends.items()},
            blocks={name: block_of(name, layers, config.blocks) for name in ends},
            num_blocks=config.blocks,
        )

    @torch.no_grad()
    def move(self, policy: Policy, shares: Sequence[float], mean: float) -> None:
        """Give the policy the weights at these shares."""
        for name, parameter in policy.named_parameters().items():
            block = self.blocks[name]
            share = mean if block is None else shares[block]
            local(parameter).copy_(self.ends[name] - (1.0 - share) * self.ways[name])

    def slopes(
        self, policy: Policy, rows: Sequence[Row], ranks: Ranks
    ) -> tuple[float, list[float]]:
        """Return the mean loss over rows, and its derivative by the share of each block."""
        losses: list[float] = []

        def loss_of(outputs: Outputs) -> Tensor:
            loss = -outputs.logprobs_N.mean()
            losses.append(float(loss.detach()))
            return loss

        sums = [0.0] * self.num_blocks
        for gradients in sample_gradients(policy, rows, 1.0, ranks, loss_of):
            for block, slope in self._products(gradients):
                sums[block] += slope
        if policy.sharded:
            summed = ranks.sum({str(block): value for block, value in enumerate(sums)})
            sums = [summed[str(block)] for block in range(self.num_blocks)]
        return sum(losses) / len(rows), [value / len(rows) for value in sums]

    def _products(self, gradients: Mapping[str, Tensor]) -> Iterator[tuple[int, float]]:
        """Yield the product of each weight's gradient with its way, and the block of the weight."""
        for name, gradient in gradients.items():
            if (block := self.blocks[name]) is not None:
                yield block, float((gradient * self.ways[name]).sum())


def constrained(shares: Sequence[float], mean: float) -> list[float]:
    """Return the nearest shares between 0 and 1 with this mean.

    >>> [round(share, 6) for share in constrained([1.4, 0.6, 0.1], 0.6)]
    [1.0, 0.65, 0.15]
    """
    low, high = min(shares) - 1.0, max(shares)
    for _ in range(60):
        shift = (low + high) / 2
        clipped = [min(1.0, max(0.0, share - shift)) for share in shares]
        low, high = (shift, high) if sum(clipped) > mean * len(shares) else (low, shift)
    return clipped

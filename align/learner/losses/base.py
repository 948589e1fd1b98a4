"""What every algorithm is: a config object with two pure steps, advantages and loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.settings import Settings
from rollouts.types import ScoredGroup

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyInputs:
    """Flat over the ``N`` completion tokens that carry an advantage; no padding anywhere."""

    logprobs_N: Tensor
    """Of the policy that learns, nats, with gradient."""
    sampler_logprobs_N: Tensor
    """Of the policy that sampled, nats."""
    advantages_N: Tensor
    """Each token carries its completion's advantage."""
    rows_N: Tensor
    """Index of the completion each token belongs to."""


class Algorithm(Settings):
    """Base of all algorithms. A new one is a new file and a line in `ALGORITHMS`."""

    name: str

    def check(self, group_size: int, where: str) -> None:
        """Raise ValueError (rule, value, remedy) where the algorithm cannot work with a setting."""

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[list[float | None]]:
        """One advantage per completion of each group; None masks the completion out of the loss."""
        raise NotImplementedError

    def moves(self, advantage: float) -> bool:
        """Whether a completion with this advantage can have a gradient; the rest need none taken."""
        return True

    def loss(
        self, inputs: PolicyInputs, *, num_tokens: int, num_sequences: int
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Loss of one micro-batch and metrics, both summable over the micro-batches of a step.

        Args:
            num_tokens: tokens with an advantage in the *whole* step, over all micro-batches.
            num_sequences: completions with an advantage in the whole step.
        """
        raise NotImplementedError

"""Parity of the engines' logprobs with the learner's: two computations of the same number."""

from __future__ import annotations

from math import inf

from align.algorithms.micro_batch import MicroBatch
from align.algorithms.outputs import Outputs


def gap_of(micro: MicroBatch, outputs: Outputs, version: str | None) -> float:
    """Return the largest difference to the sampler's logprobs over rows sampled with exactly these weights.

    It is in nats, at a logprob below -1 divided by its size: logits are rounded in proportion to theirs.
    """
    fresh = [row.policy == version for row in micro.rows]
    if not any(fresh):
        return 0.0
    sampler_N = micro.of_tokens("sampler_logprobs_T")
    difference_N = (outputs.logprobs_N.detach() - sampler_N) / sampler_N.abs().clamp(min=1.0)
    # A NaN would lose every comparison with a number, and the check would pass.
    return float(difference_N[micro.select(fresh)].abs().nan_to_num(nan=inf).max())

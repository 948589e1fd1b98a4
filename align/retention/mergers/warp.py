"""Several runs of a round, merged on a great arc, then part of the way from the parent.

    d_m      = theta_m - theta_parent                             m = 1 ... M, independent runs
    d        = slerp of d_1 ... d_M, one after another            the m-th with weight 1 / m
    theta    = theta_parent + a * d

Rame et al. 2024, arXiv 2406.16768, algorithm 1: equations 5 (SLERP, tensor by tensor) and 6 (LITI), with
M = 2 and a = 0.3. What it accepts is where the next round begins, so that the paper's loop is the campaign
itself. Its third part, the KL toward a moving mean of the policy, is ``follow`` of an anchor.
"""

from __future__ import annotations

from torch import Tensor

from align.config.mergers.settings import WarpMergeConfig
from align.retention.mergers.base import WeightStack
from align.retention.mergers.slerp import arc


def warp(stack: WeightStack, config: WarpMergeConfig) -> Tensor:
    """Return the parent with a share of the merged change of all runs."""
    first, *others = (run - stack.anchor for run in stack.runs)
    change = first
    for number, other in enumerate(others, start=2):
        change = arc(change, other, 1.0 / number)
    return stack.anchor + stack.share * change

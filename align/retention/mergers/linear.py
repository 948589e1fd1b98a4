"""Straight line from an earlier snapshot to the trained weights.

    theta(a) = theta_to + a * (theta_trained - theta_to)        0 < a <= 1

WiSE-FT: Wortsman et al. 2021, arXiv 2109.01903, section 3. As the last step of WARP it is called LITI: Rame
et al. 2024, arXiv 2406.16768, equation 6. Lin et al. 2023, arXiv 2309.06256, found it ahead of replay, EWC
and KL on the front of reward and alignment tax. Assumed is that the weights lie in one basin of the loss.
"""

from __future__ import annotations

from torch import Tensor

from align.config.mergers.settings import LinearMergeConfig
from align.learner.model.blend import between
from align.retention.mergers.base import WeightStack


def linear(stack: WeightStack, config: LinearMergeConfig) -> Tensor:
    """Return the point of the line; the trained weights themselves, bit for bit, for the share 1."""
    return between(stack.anchor, stack.trained, stack.share)

"""Changes of all rounds, trimmed to their largest entries, with one sign elected for each weight.

    t_k      <- t_k where |t_k| is among the tensor's largest, else 0                    trim
    s        = sign(sum_k t_k)                                                           elect
    t        = mean of those t_k that are not 0 and have the sign s                      merge
    theta    = theta_base + scale * t

Yadav et al. 2023, arXiv 2306.01708, section 4; computed by peft, which trims each tensor by itself. The
paper merges models that were trained side by side from one base. Here ``t_k = theta_k - theta_base`` holds
what all rounds up to k have changed, so a weight that a round leaves alone keeps its value. With ``of:
parent`` each round's own change is merged, and where rounds agree their changes are averaged, not added.
"""

from __future__ import annotations

import torch
from torch import Tensor

from align.config.mergers.settings import TiesMergeConfig
from align.retention.mergers.base import WeightStack


def ties(stack: WeightStack, config: TiesMergeConfig) -> Tensor:
    """Return the base with the merged change."""
    from peft.utils.merge_utils import ties as merge_changes

    changes = stack.changes(config.of)
    change: Tensor = merge_changes(changes, torch.ones(len(changes)), config.density)
    return stack.base + config.scale * change

"""Changes of all rounds, of which most entries are dropped at random and the rest scaled up.

    t_k      <- m * t_k / p            m ~ Bernoulli(p), drawn for each weight
    theta    = theta_base + scale * sum_k w_k t_k

Yu et al. 2023, arXiv 2311.03099, equations 2 to 4; computed by peft (``dare_linear``). In the mean over the
draws each change is itself. The changes of rounds from their own parents add up to the trained weights, so
their weights are 1; changes from the base hold one another, and their mean is taken: ``w_k = 1 / n``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from align.config.mergers.settings import DareMergeConfig
from align.retention.mergers.base import WeightStack


def dare(stack: WeightStack, config: DareMergeConfig) -> Tensor:
    """Return the base with the sum of the sparse changes, drawn by the stack's seed."""
    from peft.utils.merge_utils import dare_linear

    changes = stack.changes(config.of)
    weight = 1.0 if config.of == "parent" else 1.0 / len(changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stack.seed)
        change: Tensor = dare_linear(changes, torch.full((len(changes),), weight), config.density)
    return stack.base + config.scale * change

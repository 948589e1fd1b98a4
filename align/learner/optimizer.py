"""The optimizer of a round, and its learning rates over the steps: one schedule, a peak for each group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import cos, pi

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from align.config.campaign import OptimizerConfig

PEAK = "initial_lr"
"""Key of a group's peak learning rate, as torch's own schedules name it."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: (1.0 + cos(pi * progress)) / 2.0,
    "constant": lambda progress: 1.0,
}
"""How high the learning rate still stands between its peak (1) and its end (0), by the share of the fall
that is done. The cosine: Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5, without restarts."""


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """Make AdamW with fresh state; on a CPU its step is one pass over the weights instead of eight."""
    trained = list(parameters)
    return torch.optim.AdamW(
        [{"params": trained, PEAK: config.lr}],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=_lie_on_cpu(trained) or None,
    )


def _lie_on_cpu(parameters: Sequence[nn.Parameter]) -> bool:
    """Tell if parameters lie on a CPU and whole."""
    return all(p.device.type == "cpu" and not isinstance(p, DTensor) for p in parameters)


def add_group(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], lr: float
) -> None:
    """More parameters, with a peak learning rate of their own."""
    optimizer.add_param_group({"params": list(parameters), PEAK: lr})


def set_learning_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Every group's learning rate as a share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group[PEAK] * share


def learning_rate(optimizer: OptimizerConfig, step: int, num_steps: int) -> float:
    """Linear warm-up to ``lr``, then the schedule's fall to ``final_lr * lr`` at the last step.

    >>> chosen = OptimizerConfig(lr=0.1, warmup_steps=1, final_lr=0.5)
    >>> [round(learning_rate(chosen, step, 5), 4) for step in range(5)]
    [0.05, 0.0875, 0.075, 0.0625, 0.05]
    >>> chosen = OptimizerConfig(lr=0.1, schedule="cosine", final_lr=0.5)
    >>> [round(learning_rate(chosen, step, 5), 4) for step in range(5)]
    [0.1, 0.0927, 0.075, 0.0573, 0.05]
    """
    warm = min(1.0, (step + 1) / (optimizer.warmup_steps + 1))
    progress = step / max(num_steps - 1, 1)
    fallen = max(0.0, progress - optimizer.decay_from) / (1.0 - optimizer.decay_from)
    height = SCHEDULES[optimizer.schedule](fallen)
    return optimizer.lr * warm * (optimizer.final_lr + height * (1.0 - optimizer.final_lr))

"""Optimizer of a round: its learning rates over the steps, clipping, and penalties on the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from align.config.campaign import OptimizerConfig
from align.errors import NonFiniteError
from align.learner.penalty import Penalty, WeightStep
from align.learner.quantized.moments import eight_bit_adamw
from align.learner.ranks.sharding import local, whole

PEAK = "initial_lr"
"""Key of a group's peak learning rate, as torch's own schedules name it."""

MAX_SKIPPED_STEPS = 3
"""Non-finite steps in a row before the round fails."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: (1.0 + cos(pi * progress)) / 2.0,
    "constant": lambda progress: 1.0,
}
"""Heights of the learning rate between its peak (1) and its end (0), by the share of the fall that is done.
The cosine: Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5, without restarts."""


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """Make AdamW with fresh state; on a CPU its step is one pass over the weights instead of eight.

    Raises:
        UserError: it keeps moments in 8 bits, and bitsandbytes is not installed.
    """
    trained = list(parameters)
    groups = [{"params": trained, PEAK: config.lr}]
    settings: dict[str, Any] = {
        "lr": config.lr,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    if config.moments == "8bit":
        return eight_bit_adamw(groups, **settings)
    fused = all(p.device.type == "cpu" and not isinstance(p, DTensor) for p in trained) or None
    return torch.optim.AdamW(groups, **settings, fused=fused)


def add_group(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], lr: float
) -> None:
    """Add parameters with a peak learning rate of their own."""
    optimizer.add_param_group({"params": list(parameters), PEAK: lr})


def set_learning_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every group's learning rate to a share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group[PEAK] * share


def learning_rate(optimizer: OptimizerConfig, step: int, num_steps: int) -> float:
    """Return the rate of a step: linear warm-up to ``lr``, then the schedule's fall to ``final_lr * lr``.

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


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Clip gradients that are summed over the ranks; return their norm before."""
    clipped = list(parameters)
    norm = torch.nn.utils.get_total_norm([p.grad for p in clipped if p.grad is not None])
    if (before := float(whole(norm))) > max_norm:
        torch.nn.utils.clip_grads_with_norm_(clipped, max_norm, norm)
    return before


def penalize_weights(
    penalties: Sequence[Penalty], trained: Mapping[str, nn.Parameter], device: torch.device
) -> dict[str, float]:
    """Add the gradients of penalties on the weights themselves; return this rank's value of each penalty.

    Every rank adds them to gradients that were summed over the ranks before: to its own part of sharded
    weights, and to all of those that every rank has.
    """
    acting = [penalty for penalty in penalties if penalty.acts_on_weights]
    if not acting:
        return {}
    weights: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    for name, parameter in trained.items():
        assert parameter.grad is not None, "every step begins with zeros"
        gradients[name] = local(parameter.grad)
        weights[name] = local(parameter).detach().requires_grad_()
        # The backward pass of a term adds to the parameter's own gradient in place.
        weights[name].grad = gradients[name]
    for penalty in acting:
        penalty.after_backward(gradients)
    values: dict[str, float] = {}
    for penalty in acting:
        total = torch.zeros((), device=device)
        for term in penalty.parameter_penalty(weights):
            term.backward()  # type: ignore[no-untyped-call]
            total += term.detach()
        values[f"retention/{penalty.name}"] = float(total)
    for penalty in acting:
        penalty.project(gradients)
    return values


def take_step(
    optimizer: torch.optim.Optimizer,
    penalties: Sequence[Penalty],
    trained: Mapping[str, nn.Parameter],
) -> None:
    """Take the optimizer's step; penalties may change it, and read what it has become."""
    following = [penalty for penalty in penalties if penalty.follows_steps]
    if not following:
        optimizer.step()
        return
    group = optimizer.param_groups[0]
    before = {name: local(parameter).detach().clone() for name, parameter in trained.items()}
    optimizer.step()
    step = WeightStep(
        before=before,
        weights={name: local(parameter).detach() for name, parameter in trained.items()},
        momenta={
            name: local(optimizer.state[p]["exp_avg"])
            for name, p in trained.items()
            if "exp_avg" in optimizer.state[p]
        },
        share=group["lr"] / group[PEAK],
    )
    with torch.no_grad():
        for penalty in following:
            penalty.change_update(step)
        for penalty in following:
            penalty.after_update(step)


def count_skipped(skipped: int, lr: float) -> int:
    """Return the number of steps in a row that were skipped, with one more whose gradient is not finite.

    Raises:
        NonFiniteError: there are `MAX_SKIPPED_STEPS` of them.
    """
    if skipped + 1 >= MAX_SKIPPED_STEPS:
        raise NonFiniteError(
            f"the gradient was not finite in {skipped + 1} steps in a row",
            where="learner",
            cause=f"a learning rate of {lr:g} that is too high, or a model that overflows",
            remedy="lower optimizer.lr, or set policy.dtype to float32",
        )
    return skipped + 1

"""Diagonal of a policy's Fisher information, estimated from the policy's own samples.

    F_i = E_{x ~ prompts} E_{y ~ pi(.|x)} [ (d log pi(y|x) / d theta_i)^2 ]
       ~= 1/M * sum_m (d log pi(y_m|x_m) / d theta_i)^2        y_m sampled from pi itself

This is the Fisher information of Kirkpatrick et al. 2017, arXiv 1612.00796, with the expectation over the
model's own outputs. The same sum over answers of a file is the "empirical Fisher", which is another matrix
(Kunstner et al. 2019, arXiv 1905.12558). The expectation over the outputs is a mean of M samples here, so F
has sampling noise of order 1/sqrt(M).

Assumptions: ``log pi(y|x)`` is the sum over the completion's tokens, at the temperature that they were
sampled with. Squares are taken completion by completion, since the square of a sum of gradients is not the
sum of their squares: every sample costs a backward pass of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from align.algorithms.rows import Row
from align.learner.batching import to_tensors
from align.learner.model.policy import Policy, completion_outputs
from align.learner.ranks.ranks import Ranks
from align.learner.ranks.sharding import local


def diagonal_fisher(
    policy: Policy, rows: Sequence[Row], temperature: float, ranks: Ranks
) -> Mapping[str, Tensor]:
    """Return the mean squared gradient of every trained weight, by parameter name and laid out like it.

    All ranks call this together. The gradients of sharded weights are summed over ranks in the backward
    pass, so all ranks run each sample then, and only the first rank's gradient counts.

    Args:
        rows: samples of the policy with its present weights.
        temperature: sampling temperature of the rows.
    """
    trained = policy.named_parameters()
    squares = {name: torch.zeros_like(parameter) for name, parameter in trained.items()}
    counts = ranks.rank == 0 or not policy.sharded
    for row in rows:
        micro = to_tensors([row]).to(policy.device)
        for parameter in trained.values():
            parameter.grad = None
        with policy.passing(learns=False), torch.enable_grad():
            outputs = completion_outputs(
                policy.model, micro, dtype=policy.dtype, temperature=temperature
            )
            logprob = outputs.logprobs_N.sum()
            (logprob if counts else logprob * 0.0).backward()  # type: ignore[no-untyped-call]
        for name, parameter in trained.items():
            if parameter.grad is not None:
                gradient = local(parameter.grad)
                local(squares[name]).addcmul_(gradient, gradient)
    for name, parameter in trained.items():
        parameter.grad = None
        local(squares[name]).div_(len(rows))
    return squares

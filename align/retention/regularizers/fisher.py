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

from torch import Tensor

from align.algorithms.rows import Row
from align.learner.model.policy import Policy
from align.learner.ranks.ranks import Ranks
from align.learner.ranks.sharding import local
from align.retention.samples import laid_out, sample_gradients


def diagonal_fisher(
    policy: Policy, rows: Sequence[Row], temperature: float, ranks: Ranks
) -> Mapping[str, Tensor]:
    """Return the mean squared gradient of every trained weight, by parameter name and laid out like it.

    All ranks call this together; see `sample_gradients`.

    Args:
        rows: samples of the policy with its present weights.
        temperature: sampling temperature of the rows.
    """
    squares = laid_out(policy)
    for gradients in sample_gradients(policy, rows, temperature, ranks):
        for name, gradient in gradients.items():
            local(squares[name]).addcmul_(gradient, gradient)
    for tensor in squares.values():
        local(tensor).div_(len(rows))
    return squares

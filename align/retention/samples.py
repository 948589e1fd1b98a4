"""Gradients of a policy's own samples, one by one, after a round was accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from align.algorithms.outputs import Outputs
from align.algorithms.rows import Row
from align.learner.batching import to_tensors
from align.learner.model.policy import Policy, completion_outputs
from align.learner.ranks.ranks import Ranks
from align.learner.ranks.sharding import local


def sequence_logprob(outputs: Outputs) -> Tensor:
    """Return the log-probability of a completion, the sum over its tokens."""
    return outputs.logprobs_N.sum()


def sample_gradients(
    policy: Policy,
    rows: Sequence[Row],
    temperature: float,
    ranks: Ranks,
    measure: Callable[[Outputs], Tensor] = sequence_logprob,
) -> Iterator[dict[str, Tensor]]:
    """Yield the gradient of each sample's number by parameter name; of sharded weights this rank's part.

    All ranks call this together. The gradients of sharded weights are summed over ranks in the backward
    pass, so all ranks run each sample then, and only the first rank's gradient counts. A tensor is
    overwritten by the next sample, and a weight that the number does not depend on has none.

    Args:
        rows: samples of the policy with its present weights.
        temperature: sampling temperature of the rows.
        measure: scalar of one sample's outputs.
    """
    trained = policy.named_parameters()
    counts = ranks.rank == 0 or not policy.sharded
    for row in rows:
        micro = to_tensors([row]).to(policy.device)
        for parameter in trained.values():
            parameter.grad = None
        with policy.passing(learns=False), torch.enable_grad():
            outputs = completion_outputs(
                policy.model, micro, dtype=policy.dtype, temperature=temperature
            )
            number = measure(outputs)
            (number if counts else number * 0.0).backward()  # type: ignore[no-untyped-call]
        gradients = {n: local(p.grad) for n, p in trained.items() if p.grad is not None}
        yield gradients
    for parameter in trained.values():
        parameter.grad = None


def laid_out(policy: Policy, parts: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return tensors like the trained weights, of zeros or of this rank's ``parts``."""
    tensors = {n: torch.zeros_like(p.detach()) for n, p in policy.named_parameters().items()}
    for name, part in (parts or {}).items():
        local(tensors[name]).copy_(part)
    return tensors

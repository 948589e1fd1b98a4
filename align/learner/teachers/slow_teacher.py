"""Teacher that moves after the policy, slowly.

    teacher <- teacher + follow * (policy - teacher)      after every optimizer step

Its weights are a moving average of the policy's, so it is calmer than the policy and learns what the policy
has learned (the mean teacher of Tarvainen and Valpola 2017, arXiv 1703.01780; of self-distillation with
demonstrations, Shenfeld et al. 2026, arXiv 2601.19897). It exists while its round does: a checkpoint holds
it, no snapshot does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from align.algorithms.micro_batch import MicroBatch
from align.algorithms.outputs import Outputs
from align.learner.model.policy import Policy, completion_outputs


class SlowTeacher:
    """Moving average of a policy's full weights, in float32: bfloat16 would round small steps away.

    Args:
        model: where it begins; of the policy's architecture.
        follow: share of the way to the policy that a step goes.
    """

    def __init__(self, model: Any, policy: Policy, follow: float) -> None:
        self._model, self._policy, self._follow = model.requires_grad_(False), policy, follow

    @torch.no_grad()
    def outputs(self, micro: MicroBatch, temperature: float) -> Outputs:
        """Run the teacher over the completion tokens."""
        return completion_outputs(
            self._model, micro, dtype=self._policy.dtype, temperature=temperature
        )

    @torch.no_grad()
    def move(self) -> None:
        """Go one step after the policy."""
        learned = self._policy.named_parameters()
        for name, weight in self._model.named_parameters():
            weight.lerp_(learned[name], self._follow)

    def named_tensors(self) -> dict[str, Tensor]:
        """Return all weights by name: the teacher's part of the training state."""
        return {name: weight.detach() for name, weight in self._model.named_parameters()}

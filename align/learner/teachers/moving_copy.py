"""Copies of the policy that move after it: teachers, and anchors that follow.

    copy <- copy + follow * (policy - copy)      whenever it moves

A copy's weights are a moving average of the policy's, so it is calmer than the policy and learns what the
policy has learned (the mean teacher of Tarvainen and Valpola 2017, arXiv 1703.01780; of self-distillation
with demonstrations, Shenfeld et al. 2026, arXiv 2601.19897). It exists while its round does: a checkpoint
holds it, no snapshot does. Each of several ranks holds a whole copy, as it does of a frozen snapshot.

Where snapshots are adapters the copy is an adapter over the policy's own base, and the average is one of
its factors A and B. That of their product would be of a higher rank: the two agree where a move goes all
the way, and nearly where it goes a small one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, Protocol

import torch
from torch import Tensor

from align.algorithms.micro_batch import MicroBatch
from align.algorithms.outputs import Outputs
from align.learner.model.adapter import TRAINED, add_frozen_adapter, merged
from align.learner.model.policy import Policy, completion_outputs
from align.learner.ranks.sharding import whole
from align.learner.references import ReferenceModels
from rollouts.types import SnapshotId


class MovingCopy(Protocol):
    """Copy of the policy that moves after it."""

    def outputs(self, micro: MicroBatch, temperature: float) -> Outputs:
        """Run the copy over the completion tokens, without gradient."""
        ...

    def move(self) -> None:
        """Go one step after the policy. All ranks call this together."""
        ...

    def named_tensors(self) -> dict[str, Tensor]:
        """Return all tensors that move, by name: the copy's part of the training state."""
        ...


def moving_copy(
    models: ReferenceModels,
    policy: Policy,
    weights_of: Callable[[SnapshotId], Mapping[str, Tensor]],
    *,
    start: SnapshotId,
    follow: float,
    label: str,
) -> MovingCopy:
    """Make a copy that moves after the policy; the policy may hold other weights afterwards.

    Args:
        weights_of: loads a snapshot into the policy and returns copies of its trained weights by name.
        start: snapshot that the copy begins with.
        follow: share of the way to the policy that a move goes.
        label: name that no other copy of the round has.
    """
    if policy.config.snapshot_kind == "adapter":
        return MovingAdapter(weights_of(start), policy, models, follow, label)
    return MovingModel(models.copy(start), policy, follow)


class MovingModel:
    """Moving average of a policy's full weights, in float32: bfloat16 would round small steps away.

    Args:
        model: where it begins; of the policy's architecture.
        follow: share of the way to the policy that a move goes.
    """

    def __init__(self, model: Any, policy: Policy, follow: float) -> None:
        self._model, self._policy, self._follow = model.requires_grad_(False), policy, follow

    @torch.no_grad()
    def outputs(self, micro: MicroBatch, temperature: float) -> Outputs:
        """Run the copy over the completion tokens."""
        return completion_outputs(
            self._model, micro, dtype=self._policy.dtype, temperature=temperature
        )

    @torch.no_grad()
    def move(self) -> None:
        """Go one step after the policy."""
        policy = self._policy
        learned = merged(policy.model) if policy.config.lora else policy.named_parameters()
        for name, weight in self._model.named_parameters():
            weight.lerp_(whole(learned[name]), self._follow)

    def named_tensors(self) -> dict[str, Tensor]:
        """Return all weights by name: the copy's part of the training state."""
        return {name: weight.detach() for name, weight in self._model.named_parameters()}


class MovingAdapter:
    """Moving average of a policy's adapter, as a second adapter over the same base.

    Args:
        start: tensors that it begins with, by the names of the policy's trained parameters.
        follow: share of the way to the policy that a move goes.
        label: name that no other copy of the round has; one of an earlier round is replaced.
    """

    def __init__(
        self,
        start: Mapping[str, Tensor],
        policy: Policy,
        models: ReferenceModels,
        follow: float,
        label: str,
    ) -> None:
        self._policy, self._models, self._follow = policy, models, follow
        # peft allows no dot in an adapter's name.
        self._adapter = f"moving-{blake2b(label.encode(), digest_size=8).hexdigest()}"
        add_frozen_adapter(policy.model, self._adapter)
        beside = dict(policy.model.named_parameters())
        self._tensors = {name: beside[self._own(name)].detach() for name in start}
        for name, tensor in start.items():
            self._tensors[name].copy_(tensor)

    def outputs(self, micro: MicroBatch, temperature: float) -> Outputs:
        """Run the copy over the completion tokens."""
        return self._models.adapter_outputs(self._adapter, micro, temperature)

    @torch.no_grad()
    def move(self) -> None:
        """Go one step after the policy."""
        learned = self._policy.named_parameters()
        for name, tensor in self._tensors.items():
            tensor.lerp_(learned[name], self._follow)

    def named_tensors(self) -> dict[str, Tensor]:
        """Return the adapter's tensors by the names of the policy's."""
        return dict(self._tensors)

    def _own(self, name: str) -> str:
        """Return the name of this adapter's parameter that stands beside one of the policy's."""
        return name.replace(f".{TRAINED}.", f".{self._adapter}.")

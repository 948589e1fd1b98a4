"""The critic: what score to expect, at every token that is about to be chosen.

A linear head, zero at first, on the hidden states that predict the completion tokens: those of a decoder
of its own, or those of the policy. Several ranks share out the decoder and head of a critic of its own as
they do the policy's full weights; on the policy's hidden states each has the whole head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align.algorithms.micro_batch import MicroBatch
from align.algorithms.outputs import Outputs
from align.algorithms.policy_gradient.actor_critic.ppo import SHARED, CriticConfig
from align.learner.model.loading import load_mapped, load_model
from align.learner.model.policy import Policy, completion_outputs
from align.learner.ranks.ranks import SOLO, Ranks
from align.learner.ranks.sharding import (
    drop_gathered,
    gathered,
    local,
    part_like,
    shard,
    shard_head,
)
from align.learner.references import PlaceOf, here
from align.learner.teachers.companions import check_companion
from align.store.durable import replacing
from rollouts.errors import RunError

FILE = "critic.safetensors"


class Critic:
    """Values of completion tokens, in units of the score."""

    def __init__(
        self,
        head: nn.Linear,
        body: Any | None,
        *,
        dtype: torch.dtype,
        shared_gradient: bool,
        ranks: Ranks = SOLO,
    ) -> None:
        self.head, self._body, self._ranks = head, body, ranks
        self._dtype, self._shared_gradient = dtype, shared_gradient
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        if ranks.size > 1 and body is not None:
            device = head.weight.device
            shard(body, device)
            shard_head(head, device)

    def values(self, micro: MicroBatch, outputs: Outputs) -> Tensor:
        """Return the value of each completion token, before it is chosen; shape ``N``.

        Args:
            outputs: the policy's over the same rows.
        """
        if self._body is not None:
            body = completion_outputs(self._body, micro, dtype=self._dtype, temperature=1.0)
            hidden_ND = body.hidden_ND
        else:
            shares = self._shared_gradient
            hidden_ND = outputs.hidden_ND if shares else outputs.hidden_ND.detach()
        # Outside autocast: a value is regressed on, and bfloat16 has three digits.
        values_N1: Tensor = self.head(hidden_ND.float())
        return values_N1[:, 0]

    def parameters(self) -> list[nn.Parameter]:
        """List the weights that the optimizer updates besides the policy's; this rank's part if sharded."""
        return [parameter for _, parameter in self._named_parameters()]

    def named_tensors(self) -> dict[str, Tensor]:
        """Return this rank's weights by name: the critic's part of the training state."""
        return {name: local(parameter).detach() for name, parameter in self._named_parameters()}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over whole weights of a critic of the same kind, in place: the optimizer keeps its hold on
        the weights. Raises RunError where names differ."""
        weights = dict(self._named_parameters())
        if other := sorted(weights.keys() ^ tensors.keys()):
            raise RunError(
                f"the weights do not fit the critic: {other[0]!r} is on one side only",
                where="critic",
                cause="they are of another model, or of a head on other hidden states",
                remedy="continue with the critic.model that they were written with",
            )
        for name, tensor in weights.items():
            tensor.copy_(part_like(tensors[name], tensor))

    def save(self, folder: Path) -> None:
        """Write ``critic.safetensors``. Not into a snapshot's folder: whatever safetensors lie there are
        the policy's. All ranks call this together; the first writes."""
        from safetensors.torch import save_file

        whole = gathered(self._named_parameters(), keep=self._ranks.rank == 0)
        if self._ranks.rank > 0:
            return
        tensors = {name: tensor.contiguous() for name, tensor in whole.items()}
        with replacing(folder / FILE) as staged:
            save_file(tensors, staged)

    def load(self, folder: Path) -> None:
        """Take over what `save` wrote."""
        from safetensors.torch import load_file

        self.load_tensors(load_file(folder / FILE))

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        drop_gathered(self.head)
        if self._body is not None:
            drop_gathered(self._body)
        for name, parameter in self.head.named_parameters():
            yield f"head.{name}", parameter
        if self._body is not None:
            for name, parameter in self._body.get_decoder().named_parameters():
                yield f"body.{name}", parameter


def make_critic(
    config: CriticConfig, policy: Policy, parent: Path, place_of: PlaceOf = here
) -> Critic:
    """Make a fresh critic of a policy.

    Args:
        parent: folder of the model that the round starts from, with full weights.
        place_of: finds the folder of another model.
    """
    body, folder = None, parent
    if config.model not in (None, SHARED):
        folder = place_of(Path(config.model).expanduser())
        check_companion(parent, folder, what="critic", where="algorithm.critic.model")
    if config.model != SHARED:
        # A model that will be sharded stays in its files until then.
        body = (
            load_mapped(folder, policy.config)
            if policy.ranks.size > 1
            else load_model(folder, policy.config, policy.device, torch.float32)
        )
    width = (policy.model if body is None else body).get_output_embeddings().weight.shape[1]
    if body is not None:
        # A row of the vocabulary is never asked for, and large: it need not lie in memory.
        body.set_output_embeddings(nn.Identity())
    return Critic(
        nn.Linear(width, 1, device=policy.device),
        body,
        dtype=policy.dtype,
        shared_gradient=config.shared_gradient,
        ranks=policy.ranks,
    )

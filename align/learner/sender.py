"""Full weights of the policy on their way straight to engines, without a copy of the whole in host memory.

Every rank holds a `DirectTransfer`. The tensors go in the form of a model's files, one after another, each
gathered from the ranks' parts when its turn comes. `rollouts.engines.transfer` knows how they travel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from align.config.policy import PolicyConfig
from align.learner.model.adapter import causal_of
from align.learner.model.mapping import stored_form
from align.learner.model.policy import Policy
from align.learner.ranks.ranks import Ranks
from align.learner.ranks.sharding import drop_gathered, whole
from rollouts.engines.protocol import WeightTransfer
from rollouts.engines.transfer.buckets import TensorForm, form_of
from rollouts.engines.transfer.client import EngineClient
from rollouts.engines.transfer.sender import WeightSender, open_sender
from rollouts.pool.placement import reachable_host


class PolicyTensors:
    """Weights of a policy as engines read them, on one rank; see `WeightSource`."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self._model = policy, causal_of(policy.model)

    def forms(self) -> Sequence[TensorForm]:
        """List the tensors to come; nothing is gathered."""
        return self._forms

    @cached_property
    def _forms(self) -> Sequence[TensorForm]:
        forms = []
        for group in self._groups():
            shells = {name: torch.empty(p.shape, device="meta") for name, p in group.items()}
            forms += [form_of(name, tensor) for name, tensor in self._converted(shells)]
        return forms

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield whole tensors; those that files split or name otherwise are gathered a layer at a time."""
        drop_gathered(self._policy.model)
        names = {form.name for form in self._forms}
        for group in self._groups():
            if group.keys() <= names:
                for name, parameter in group.items():
                    yield name, whole(parameter.detach())
            else:
                yield from self._converted({n: whole(p.detach()) for n, p in group.items()})

    def _converted(self, group: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield a layer's tensors as files have them, in the layer's order where files have the same."""
        stored = stored_form(self._model, group)
        names = group if stored.keys() == group.keys() else stored
        yield from ((name, stored[name]) for name in names)

    def _groups(self) -> Iterator[Mapping[str, Tensor]]:
        """Yield the parameters of one layer after another; a tied one comes once."""
        group: dict[str, Tensor] = {}
        layer: str | None = None
        for name, parameter in self._model.named_parameters():
            its_layer = _layer_of(name)
            if group and its_layer != layer:
                yield group
                group = {}
            layer = its_layer
            group[name] = parameter
        yield group


class DirectTransfer:
    """One rank's end of the way from the policy to the engines.

    Args:
        timeout_s: seconds that a message of a few tensors may take.
    """

    def __init__(
        self, policy: Policy, ranks: Ranks, backend: WeightTransfer, timeout_s: float
    ) -> None:
        self._source = PolicyTensors(policy)
        self._ranks, self._backend, self._timeout_s = ranks, backend, timeout_s
        self._engines: tuple[Any, ...] = ()
        self._sender: WeightSender | None = None
        self._client = EngineClient((), 0, timeout_s=timeout_s)

    def send(self, version: str, actors: Sequence[Any], workers_each: int) -> str:
        """Send the policy's weights; all ranks must call this.

        Returns:
            The reason why they did not reach all engines; empty if they did.
        """
        failure = ""
        if self._sender is None or self._engines != tuple(actors):
            failure = self._tried(partial(self._meet, actors, workers_each))
        if not failure:
            assert self._sender is not None
            self._client.version = version
            failure = self._tried(self._sender.send)
        if failure:
            self.close()
        return failure

    def close(self) -> None:
        """Leave the engines; the next weights are sent over a new way."""
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.close()

    def _tried(self, work: Callable[[], None]) -> str:
        """Do the work; return what went wrong on the first rank, on every rank alike."""
        failure = ""
        try:
            work()
        except (
            Exception
        ) as error:  # Whatever broke on the way, the pool finds out whose fault it was.
            failure = f"{type(error).__name__}: {error}".splitlines()[0]
        return self._ranks.exchange(failure)[0]

    def _meet(self, actors: Sequence[Any], workers_each: int) -> None:
        self.close()
        self._client = EngineClient(actors, workers_each, timeout_s=self._timeout_s)
        self._sender = open_sender(
            self._backend,
            self._source,
            self._client,
            rank=self._ranks.rank,
            host=reachable_host(),
            timeout_s=self._timeout_s,
        )
        self._engines = tuple(actors)


def sends_weights(transfer: WeightTransfer, policy: PolicyConfig) -> bool:
    """Tell if the policy's weights go straight to engines. Those of an adapter do not: its base lies in
    files, and what changes is small."""
    return transfer != "host" and policy.lora is None


def _layer_of(name: str) -> str:
    """Return the beginning of a parameter's name up to its first number.

    >>> _layer_of("model.layers.3.mlp.experts.7.w1"), _layer_of("model.norm.weight")
    ('model.layers.3', '')
    """
    parts = name.split(".")
    index = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return "" if index is None else ".".join(parts[: index + 1])

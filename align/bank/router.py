"""Retrieval: which adapters of a bank answer a prompt, by the prompt alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from align.bank.encoder import PromptEncoding
from align.bank.keys import group_similarity
from align.bank.mixing import mixing_weights
from rollouts.types import Increment, Mix, PromptIds

Value = TypeVar("Value")

KEPT = 20_000
"""Prompts whose queries or mixes are kept; beyond them those used least recently go."""


class Queries:
    """Queries of prompts under a frozen encoder, each computed once."""

    def __init__(self, encoder: PromptEncoding) -> None:
        self.encoder = encoder
        self._kept: OrderedDict[PromptIds, Tensor] = OrderedDict()

    def of(self, prompts: Sequence[PromptIds]) -> Tensor:
        """Return the queries of prompts, ``B, C``; that of an empty prompt is 0."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._kept]
        fresh = {prompt: torch.zeros(self.encoder.identity.width) for prompt in missing}
        if texts := [prompt for prompt in missing if prompt]:
            fresh |= dict(zip(texts, self.encoder.encode(texts), strict=True))
        rows = [self._kept[p] if p in self._kept else fresh[p] for p in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            _keep(self._kept, prompt, row)
        return torch.stack(rows)


class Router:
    """Choice of adapters over a set of keys.

    Args:
        keys: adapters by name, each with its keys ``G, P, C / G``; none: the base answers.
        top_k: largest number of increments that answer a prompt.
        per_batch: give prompts that are first asked together the same mix. Each keeps it from then on, so
            that a sample is learnt under the adapters that drew it.
    """

    def __init__(
        self,
        queries: Queries,
        keys: Sequence[tuple[str, Tensor]],
        *,
        top_k: int,
        per_batch: bool = False,
    ) -> None:
        self._queries, self._top_k, self._per_batch = queries, top_k, per_batch
        self._mixes: OrderedDict[PromptIds, Mix] = OrderedDict()
        self._keys_GPC = torch.cat([part for _, part in keys], dim=1) if keys else None
        self._owners = [(name, i) for name, part in keys for i in range(part.shape[1])]

    @torch.no_grad()
    def mixes(self, prompts: Sequence[PromptIds]) -> list[Mix]:
        """Return the increments that answer each prompt, the heaviest first."""
        if self._keys_GPC is None:
            return [()] * len(prompts)
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._mixes]
        fresh: dict[PromptIds, Mix] = {}
        if missing:
            similarity_BGP = group_similarity(self._queries.of(missing), self._keys_GPC)
            weights_BP = mixing_weights(similarity_BGP, self._top_k, per_batch=self._per_batch)
            rows = map(self._mix, weights_BP.tolist())
            fresh = dict(zip(missing, rows, strict=True))
        mixes = [self._mixes[p] if p in self._mixes else fresh[p] for p in prompts]
        for prompt, mix in zip(prompts, mixes, strict=True):
            _keep(self._mixes, prompt, mix)
        return mixes

    def _mix(self, weights_P: Sequence[float]) -> Mix:
        chosen = sorted((-weight, key) for key, weight in enumerate(weights_P) if weight > 0)
        return tuple(Increment(*self._owners[key], -negated) for negated, key in chosen)


def _keep(values: OrderedDict[PromptIds, Value], key: PromptIds, value: Value) -> None:
    values[key] = value
    values.move_to_end(key)
    while len(values) > KEPT:
        values.popitem(last=False)

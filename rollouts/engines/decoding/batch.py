"""Rows that are decoded together, one token at a time.

`CachedBatch` keeps keys and values of what was read. `RereadBatch` reads every row anew for each token, for
architectures whose state does not survive padding on the left. `batch_kind` tries out which a model needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from rollouts.engines.decoding.reader import ModelReader, right_padded
from rollouts.types import Mix

AGREEMENT = {torch.float32: 1e-3}
"""Largest difference of a probed logprob between both kinds of batch, in nats, by dtype."""
ROUGH_AGREEMENT = 0.5
"""The same in every other dtype, whose rounding alone reaches tenths of a nat. The probe tells a cache that
works from none; the parity check between engine and learner then compares every token that is sampled."""


class DecodingBatch(Protocol):
    """Rows under way; all logits are those of the next token, ``B, V``."""

    def read(self, rows: Sequence[Sequence[int]], mixes: Sequence[Mix] = ()) -> Tensor:
        """Begin anew with these rows, none of them empty.

        Args:
            mixes: adapters of a bank that each row is read under; empty: the base reads all.
        """
        ...

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token of each row."""
        ...

    def keep(self, indices: Sequence[int]) -> None:
        """Go on with these rows alone, in this order."""
        ...


class CachedBatch:
    """Rows padded on the left, over one KV cache."""

    def __init__(self, reader: ModelReader) -> None:
        self._reader = reader
        self.cache: Any = None
        self._mask_BT = torch.zeros(0)
        self._mixes: list[Mix] = []

    def read(self, rows: Sequence[Sequence[int]], mixes: Sequence[Mix] = ()) -> Tensor:
        """Begin anew; equal rows, such as those of one prompt, are read once."""
        self.cache = None
        keyed = list(zip(map(tuple, rows), mixes or [()] * len(rows), strict=True))
        places = {key: index for index, key in enumerate(dict.fromkeys(keyed))}
        distinct = [row for row, _ in places]
        self._mixes = [mix for _, mix in places]
        width, device = max(map(len, distinct)), self._reader.device
        self._mask_BT = torch.tensor(
            [[0] * (width - len(row)) + [1] * len(row) for row in distinct], device=device
        )
        padded = [[0] * (width - len(row)) + list(row) for row in distinct]
        positions_BT = (self._mask_BT.cumsum(-1) - 1).clamp(min=0)
        logits_BV = self._pass(torch.tensor(padded, device=device), positions_BT)
        if len(places) == len(rows):
            return logits_BV
        copies = [places[key] for key in keyed]
        self.keep(copies)
        return logits_BV[torch.tensor(copies, device=device)]

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token of each row."""
        one_B1 = torch.ones_like(self._mask_BT[:, :1])
        self._mask_BT = torch.cat([self._mask_BT, one_B1], dim=-1)
        positions_B1 = self._mask_BT.sum(-1, keepdim=True) - 1
        return self._pass(torch.tensor(tokens, device=self._reader.device)[:, None], positions_B1)

    @torch.inference_mode()
    def keep(self, indices: Sequence[int]) -> None:
        """Go on with these rows alone; one may be kept several times."""
        chosen_B = torch.tensor(indices, dtype=torch.long, device=self._reader.device)
        self._mask_BT = self._mask_BT[chosen_B]
        self._mixes = [self._mixes[index] for index in indices]
        self.cache.reorder_cache(chosen_B)

    def _pass(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        logits_BV, self.cache = self._reader.next_logits(
            tokens_BT,
            mixes=self._mixes,
            attention_mask=self._mask_BT,
            position_ids=positions_BT,
            past_key_values=self.cache,
            use_cache=True,
        )
        return logits_BV  # type: ignore[no-any-return]


class RereadBatch:
    """Rows padded on the right and read as a whole for every token; padding never reaches a row's own
    tokens."""

    def __init__(self, reader: ModelReader) -> None:
        self._reader = reader
        self._rows: list[list[int]] = []
        self._mixes: list[Mix] = []

    def read(self, rows: Sequence[Sequence[int]], mixes: Sequence[Mix] = ()) -> Tensor:
        """Begin anew."""
        self._rows = [list(row) for row in rows]
        self._mixes = list(mixes) or [()] * len(self._rows)
        return self._pass()

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token of each row."""
        for row, token in zip(self._rows, tokens, strict=True):
            row.append(token)
        return self._pass()

    def keep(self, indices: Sequence[int]) -> None:
        """Go on with these rows alone."""
        self._rows = [self._rows[index] for index in indices]
        self._mixes = [self._mixes[index] for index in indices]

    def _pass(self) -> Tensor:
        device = self._reader.device
        last_B = torch.tensor([len(row) - 1 for row in self._rows], device=device)
        logits_BV, _ = self._reader.next_logits(
            right_padded(self._rows, device), last_B, mixes=self._mixes
        )
        return logits_BV  # type: ignore[no-any-return]


def batch_kind(reader: ModelReader) -> tuple[type[CachedBatch] | type[RereadBatch], int]:
    """Choose the kind of batch for a model by trying both on two short rows.

    Returns:
        The kind, and the bytes that it keeps for every token of a row.
    """
    probe = CachedBatch(reader)
    try:
        gap = _largest_gap(probe, RereadBatch(reader), reader.vocabulary)
        agree = gap <= AGREEMENT.get(reader.model.dtype, ROUGH_AGREEMENT)
        cached_bytes = cache_bytes(probe.cache)
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError, NotImplementedError):
        agree = False  # The architecture has no cache that rows can be taken from.
    if agree and cached_bytes:
        return CachedBatch, -(-cached_bytes // 14)  # Two rows of five tokens and two more each.
    text = reader.model.config.get_text_config(decoder=True)
    # Activations of a layer or two are all that a pass without a cache holds.
    return RereadBatch, 16 * int(text.hidden_size) * reader.model.dtype.itemsize


def _largest_gap(cached: CachedBatch, reread: RereadBatch, vocabulary: int) -> float:
    """Decode a long and a short row in both; return the largest difference of a last logprob."""
    rows = [[t % vocabulary for t in row] for row in ([1, 2, 3, 4, 5], [6, 7])]
    logprobs = []
    batches: tuple[DecodingBatch, ...] = (cached, reread)
    for batch in batches:
        batch.read(rows)
        batch.step([1 % vocabulary, 2 % vocabulary])
        logprobs.append(batch.step([3 % vocabulary, 4 % vocabulary]).float().log_softmax(-1))
    return float((logprobs[0] - logprobs[1]).abs().max())


def cache_bytes(cache: Any) -> int:
    """Count the bytes of the keys and values in a cache."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)

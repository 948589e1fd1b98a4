"""Rows of one forward pass as tensors, the view of a batch that a loss gets.

Legend: ``_B`` rows, ``_T`` positions of a padded row, ``_N`` sampled tokens of all rows' completions in
order, ``_S`` tokens stored without padding. Sampled token ``n`` is predicted at the position before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from align.algorithms.rows import Row


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """Queries of some rows and the keys that they read: ``R`` padded rows of ``T`` and of ``W``."""

    queries_RT: Tensor
    """Stored token of each query; any at padding."""
    keys_RW: Tensor
    """Stored token of each key; any at padding, which no query of a token reads."""
    unread: Tensor
    """Flat places of the queries that are padding."""
    mask_RTW: Tensor
    """Zeros, and minus infinity where a query does not read a key; one row where all have the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TilePlaces:
    """Flat places in the tiles, one tile after the other, split for tensors whose heads lie apart."""

    start_M: Tensor
    """Place at which the row begins."""
    column_M: Tensor
    """Place within the row."""
    width_M: Tensor
    """Width of the row, in places."""

    def by_head(self, heads: int) -> Tensor:
        """Return the places in a tensor of rows, heads and columns; shape ``M, H`` made flat."""
        head_H = torch.arange(heads, device=self.start_M.device)
        start_MH = self.start_M[:, None] * heads + head_H * self.width_M[:, None]
        return (start_MH + self.column_M[:, None]).flatten()


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """Layout of rows stored without padding, where rows share the tokens of a common prompt."""

    tokens_S: Tensor
    positions_S: Tensor
    """Position of each stored token in its own row."""
    where_N: Tensor
    """Index of the stored token that predicts each completion token, row after row."""
    ends_E: Tensor
    """The stored tokens that predict any, each once."""
    of_end_N: Tensor
    """Index in `ends_E` of the one that predicts each completion token."""
    shape: tuple[int, int]
    """Sizes ``B`` and ``T`` of the padded layout."""
    laid_out: Tensor
    """Stored token at each of the ``B * T`` places; arbitrary in the padding behind a row's end."""
    first_S: Tensor
    """First of the ``B * T`` places of each stored token."""
    again: Tensor
    """Further places of the tokens that several rows share."""
    again_of: Tensor
    """Stored token of each place in `again`."""
    tiles: tuple[Tile, ...]
    """Tiles of the completions, which read their prompt and themselves, and of the prompts, each once."""
    query_S: TilePlaces
    """Place of each stored token's one query."""
    key_M: TilePlaces
    """Places of all keys of the first stored token, then of the second, and so on."""
    copies_S: Tensor
    """Number of each stored token's keys."""
    places_by_heads: dict[tuple[int, int], Any] = field(default_factory=dict, compare=False)
    """Cache of attention: the same places for given numbers of query heads and of key heads."""

    def to(self, device: torch.device) -> Packing:
        """Return the packing on another device."""
        moved: Packing = _moved(self, device)
        return moved


def _moved(part: Any, device: torch.device) -> Any:
    """Return tensors, and dataclasses and tuples of them, on another device; anything else as it is."""
    if isinstance(part, Tensor):
        return part.to(device)
    if isinstance(part, Tile | TilePlaces | Packing):
        names = [member.name for member in fields(part) if member.name != "places_by_heads"]
        return type(part)(**{name: _moved(getattr(part, name), device) for name in names})
    if isinstance(part, tuple):
        return tuple(_moved(member, device) for member in part)
    return part


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """Rows of one forward pass, as tensors."""

    rows: tuple[Row, ...]
    tokens_BT: Tensor
    """Right-padded with 0; causal attention keeps padding out of every position that counts."""
    where_N: Tensor
    """Flat index into ``B * T`` of the position that predicts each completion token."""
    targets_N: Tensor
    rows_N: Tensor
    """Row of each completion token."""
    packing: Packing
    """The same rows without padding."""
    weights_N: Tensor | None = None
    """Importance weight of each token; None: all 1."""

    def to(self, device: torch.device) -> MicroBatch:
        """Return the micro-batch on another device."""
        moved: dict[str, Any] = {
            name: getattr(self, name).to(device)
            for name in ("tokens_BT", "where_N", "targets_N", "rows_N", "packing")
        }
        return replace(self, **moved)

    @property
    def teaches_N(self) -> Tensor:
        """Mask of the tokens whose row carries an advantage."""
        return self.select([row.advantage is not None for row in self.rows])

    @property
    def advantages_N(self) -> Tensor:
        """Each token's advantage: its own, or its row's; 0 where there is none."""
        flat = [
            value
            for row in self.rows
            for value in row.advantages_T or (row.advantage or 0.0,) * row.num_sampled
        ]
        return self._floats(flat)

    def of_tokens(self, name: str) -> Tensor:
        """Return a per-token field of the rows, flat over ``N``; NaN for the tokens of a row without."""
        flat: list[float] = []
        for row in self.rows:
            flat.extend(getattr(row, name) or (float("nan"),) * row.num_sampled)
        return self._floats(flat)

    def of_rows(self, name: str) -> Tensor:
        """Return a number of every row, shape ``B``; None becomes NaN."""
        values = [getattr(row, name) for row in self.rows]
        plain = [float("nan") if value is None else float(value) for value in values]
        return self._floats(plain)

    def sums_B(self, values_N: Tensor) -> Tensor:
        """Sum over each row's completion tokens; shape ``B``, with gradient."""
        return values_N.new_zeros(len(self.rows)).index_add(0, self.rows_N, values_N)

    def select(self, chosen: Sequence[bool]) -> Tensor:
        """Return a mask over ``N``: the tokens whose row is chosen."""
        return torch.tensor(chosen, dtype=torch.bool, device=self.rows_N.device)[self.rows_N]

    def _floats(self, values: Sequence[float]) -> Tensor:
        # Loading a model elsewhere changes torch's default dtype for the whole process meanwhile.
        return torch.tensor(values, dtype=torch.float32, device=self.rows_N.device)

    def tokens_of(self, rows: Sequence[int]) -> Tensor:
        """Return the indices into ``N`` of the rows' completion tokens, row after row in this order."""
        counts = [row.num_sampled for row in self.rows]
        ends = list(accumulate(counts))
        indices = [token for b in rows for token in range(ends[b] - counts[b], ends[b])]
        return torch.tensor(indices, device=self.rows_N.device)

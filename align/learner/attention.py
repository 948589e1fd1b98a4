"""Causal attention of packed rows by matrix products, with a gradient of its own.

A prompt that several completions share is stored once and asks once: its queries read the prompt, and the
queries of a completion read prompt and completion. Padded rows would ask for the prompt again in each of
them. Keys and values are copied to where they are read, and their gradients are added up on the way back.

Legend: ``_S`` stored tokens, ``_H`` query heads, ``_K`` key heads, ``_D`` their size, ``_M`` copies of
keys; a tile has ``R`` rows of ``T`` queries and ``W`` keys. Query heads that share a key head are one long
query, so a tile is ``R * K`` products. Flat tensors have a row of ``D`` numbers for every token and head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from align.algorithms.micro_batch import Packing, Tile


def attend(
    query_SHD: Tensor, key_SKD: Tensor, value_SKD: Tensor, packing: Packing, scaling: float
) -> Tensor:
    """Return the attention of every stored token; shape ``S, H, D``."""
    states = (query_SHD, key_SKD, value_SKD)
    out: Tensor = _Attention.apply(*states, packing, scaling)  # type: ignore[no-untyped-call]
    return out


@dataclass(frozen=True, slots=True)
class Reads:
    """Rows of flat states that one tile takes."""

    queries: Tensor
    keys: Tensor
    unread: Tensor
    """Rows of the tile's queries that are padding."""
    shape: tuple[int, int, int]
    """Products, long queries and keys of each."""
    mask_RHTW: Tensor
    """The tile's mask, a view that is as large as the scores."""

    @classmethod
    def of(cls, tile: Tile, heads: int, shared: int) -> Reads:
        """Return the rows that a tile takes for these numbers of heads."""
        (rows, times), width = tile.queries_RT.shape, tile.keys_RW.shape[1]
        head_H = torch.arange(heads, device=tile.unread.device)[:, None]
        row_U, column_U = tile.unread // times, tile.unread % times
        return cls(
            queries=_of_heads(tile.queries_RT, heads),
            keys=_of_heads(tile.keys_RW, shared),
            unread=((row_U * heads + head_H) * times + column_U).flatten(),
            shape=(rows * shared, heads // shared * times, width),
            mask_RHTW=tile.mask_RTW[:, None].expand(rows, heads, times, width),
        )

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the products of queries and keys, minus infinity where a query does not read a key."""
        masked = self.mask_RHTW.to(query.dtype).clone(memory_format=torch.contiguous_format)
        return masked.view(self.shape).baddbmm_(query, key.mT)


@dataclass(frozen=True, slots=True)
class HeadPlaces:
    """A packing's places for some numbers of query and key heads."""

    reads: tuple[Reads, ...]
    out: Tensor
    """Row of each stored query's head among the queries of all tiles."""
    copies: Tensor
    """Rows of all copies of each stored key's head among the keys of all tiles."""
    begin: Tensor
    """Index in `copies` of the first one of each stored key's head."""

    @classmethod
    def of(cls, packing: Packing, heads: int, shared: int) -> HeadPlaces:
        """Return a packing's places; worked out once for all layers."""
        if (heads, shared) not in packing.places_by_heads:
            begin, copies = _copies(packing, shared)
            packing.places_by_heads[heads, shared] = cls(
                reads=tuple(Reads.of(tile, heads, shared) for tile in packing.tiles),
                out=packing.query_S.by_head(heads).flatten(),
                copies=copies,
                begin=begin,
            )
        places: HeadPlaces = packing.places_by_heads[heads, shared]
        return places


def _of_heads(stored_RT: Tensor, heads: int) -> Tensor:
    """Return the rows of flat states, head after head within each row of a tile."""
    head_H = torch.arange(heads, device=stored_RT.device)[:, None]
    return (stored_RT[:, None] * heads + head_H).flatten()


def _copies(packing: Packing, shared: int) -> tuple[Tensor, Tensor]:
    """Return `HeadPlaces.begin` and `HeadPlaces.copies`."""
    number_S = packing.copies_S
    begin_S = number_S.cumsum(0) - number_S
    head_K = torch.arange(shared, device=number_S.device)
    begin_SK = begin_S[:, None] * shared + head_K * number_S[:, None]
    token_M = torch.arange(len(number_S), device=number_S.device).repeat_interleave(number_S)
    rank_M = torch.arange(len(token_M), device=number_S.device) - begin_S[token_M]
    order_MK = begin_SK[token_M] + rank_M[:, None]
    copies_MK = packing.key_M.by_head(shared)
    copies = torch.empty_like(copies_MK.flatten()).index_copy_(
        0, order_MK.flatten(), copies_MK.flatten()
    )
    return begin_SK.flatten(), copies


class _Attention(torch.autograd.Function):
    """Autograd function of `attend`."""

    @staticmethod
    def forward(
        ctx: Any,
        query_SHD: Tensor,
        key_SKD: Tensor,
        value_SKD: Tensor,
        packing: Packing,
        scaling: float,
    ) -> Tensor:
        places = HeadPlaces.of(packing, query_SHD.shape[1], key_SKD.shape[1])
        flat = [states.reshape(-1, states.shape[-1]) for states in (query_SHD, key_SKD, value_SKD)]
        out, saved = [], []
        # Half precision stays: autocast would take the softmax to float32 and back.
        with torch.autocast(query_SHD.device.type, enabled=False):
            for reads in places.reads:
                query, key, value = (
                    states.index_select(0, rows).view(reads.shape[0], -1, states.shape[-1])
                    for states, rows in zip(
                        flat, (reads.queries, reads.keys, reads.keys), strict=True
                    )
                )
                weights = reads.scores(query.mul_(scaling), key).softmax(-1)
                out.append(torch.bmm(weights, value).view(-1, value.shape[-1]))
                saved += [query, key, value, weights]
        ctx.places, ctx.scaling = places, scaling
        ctx.save_for_backward(*saved)
        return torch.cat(out).index_select(0, places.out).view(*query_SHD.shape[:2], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_SHD: Tensor) -> tuple[Tensor | None, ...]:
        places: HeadPlaces = ctx.places
        saved = iter(ctx.saved_tensors)
        flat = grad_SHD.reshape(-1, grad_SHD.shape[-1])
        queries, keys, values = [], [], []
        for reads in places.reads:
            query, key, value, weights = (next(saved) for _ in range(4))
            grad = flat.index_select(0, reads.queries).index_fill_(0, reads.unread, 0.0)
            grad = grad.view(reads.shape[0], -1, flat.shape[-1])
            values.append(torch.bmm(weights.mT, grad).view(-1, value.shape[-1]))
            scores = torch._softmax_backward_data(
                torch.bmm(grad, value.mT), weights, -1, weights.dtype
            )
            queries.append(torch.bmm(scores, key).view(-1, key.shape[-1]))
            keys.append(torch.bmm(scores.mT, query).view(-1, query.shape[-1]))
        of_query = torch.cat(queries).index_select(0, places.out).mul_(ctx.scaling)
        of_key, of_value = (
            embedding_bag(places.copies, torch.cat(parts), places.begin, mode="sum")
            for parts in (keys, values)
        )
        tokens = len(grad_SHD)
        grads = (
            states.view(tokens, -1, states.shape[-1]) for states in (of_query, of_key, of_value)
        )
        return *grads, None, None

"""Rows without padding: their tokens one after another, a prompt that several share only once.

Everything in a decoder but attention treats tokens one by one, so it sees ``S`` stored tokens and nothing
else. Attention alone lays them out: in tiles of queries and the keys that they read, where every token asks
once (`align.learner.attention`), or for the fused kernel as padded rows, in which shared prompts appear as
often as they are read. In exact arithmetic nothing changes; a group of eight answers of 64 tokens to a
prompt of 16 has 19% fewer tokens to compute.

Legend: ``_S`` stored tokens, ``_B`` rows, ``_T`` positions of a padded row, ``_H`` heads,
``_D`` their size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align.algorithms.micro_batch import Packing, Tile, TilePlaces
from align.algorithms.rows import Row
from align.learner.attention import attend
from align.learner.model.linear import with_mixin

PACKED = "keel_packed"
"""Name of `packed_attention` among transformers' attention implementations."""
WIDTH_STEP = 8
"""Unit of the padded rows' width, in tokens: attention over 80 places takes less time than over 79, by a
quarter without a gradient, as all rows of its matrices begin at whole vectors."""
BLOCK = 64
"""Queries of a tile: a block reads keys up to its own end, so that longer rows skip half of the matrix."""
WRITTEN_OUT = 512
"""Longest row, in tokens, whose attention is written out on a CPU; the fused kernel takes up to three times
as long over it, and keeps less for the backward pass."""
SAME = 0.02
"""Largest relative difference of hidden states that rounding to bfloat16 explains."""
SAME_FLOAT = 1e-5
"""The same for float32."""


def pack(rows: Sequence[Row]) -> Packing:
    """Pack rows in their order; neighbours share their prompt if it is the same.

    A row's last token predicts nothing and is left out.
    """
    tokens: list[int] = []
    positions: list[int] = []
    where: list[int] = []
    prompts: list[range] = []
    shared: list[range] = []
    answers: list[range] = []
    for index, row in enumerate(rows):
        if index == 0 or row.prompt_ids != rows[index - 1].prompt_ids:
            prompts.append(range(len(tokens), len(tokens) + len(row.prompt_ids)))
            tokens.extend(row.prompt_ids)
            positions.extend(range(len(row.prompt_ids)))
        shared.append(prompts[-1])
        answers.append(range(len(tokens), len(tokens) + len(row.completion_ids) - 1))
        tokens.extend(row.completion_ids[:-1])
        positions.extend(range(len(row.prompt_ids), len(row.prompt_ids) + len(answers[-1])))
        predicting = [prompts[-1][-1], *answers[-1]]
        where.extend(predicting[position] for position in row.sampled_positions)
    places = [[*prompt, *answer] for prompt, answer in zip(shared, answers, strict=True)]
    laid_out = _padded(places)
    ends_E, of_end_N = torch.unique(torch.tensor(where), return_inverse=True)
    return Packing(
        tokens_S=torch.tensor(tokens),
        positions_S=torch.tensor(positions),
        where_N=torch.tensor(where),
        ends_E=ends_E,
        of_end_N=of_end_N,
        shape=(len(rows), laid_out.shape[1]),
        **_occurrences(laid_out.flatten(), len(tokens)),
        **_tiled(laid_out, answers, prompts, [len(prompt) for prompt in shared]),
    )


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return rows of tokens as a matrix, filled up with -1 to a multiple of `WIDTH_STEP`."""
    width = -(-max(1, *map(len, rows), 1) // WIDTH_STEP) * WIDTH_STEP
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows])


def _tiled(
    laid_out: Tensor, answers: Sequence[range], prompts: Sequence[range], before: Sequence[int]
) -> dict[str, Any]:
    """Return the fields of `Packing` that say how tiles of queries and keys hold the stored tokens.

    Args:
        laid_out: whole rows, the keys of the completions.
        before: keys of each row that lie before its completion.
    """
    alone = _padded(prompts)
    blocks = [
        *_blocks(_padded(answers), laid_out, torch.tensor(before)),
        *_blocks(alone, alone, torch.zeros(len(prompts), dtype=torch.long)),
    ]
    query_places, _ = _places([queries for queries, _, _ in blocks])
    key_places, copies_S = _places([keys for _, keys, _ in blocks])
    return {
        "tiles": tuple(_tile(*block) for block in blocks),
        "query_S": query_places,
        "key_M": key_places,
        "copies_S": copies_S,
    }


def _blocks(
    queries_RT: Tensor, keys_RW: Tensor, before_R: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Cut rows of queries, each block with the keys up to its end and with the rows that reach into it."""
    for begin in range(0, queries_RT.shape[1], BLOCK):
        block_RT = queries_RT[:, begin : begin + BLOCK]
        reach = block_RT[:, 0] >= 0
        if not reach.any():
            return
        before = before_R[reach] + begin
        width = int(before.max()) + block_RT.shape[1]
        yield block_RT[reach], keys_RW[reach, :width], before


def _tile(queries_RT: Tensor, keys_RW: Tensor, before_R: Tensor) -> Tile:
    if bool((before_R == before_R[0]).all()):
        before_R = before_R[:1]
    position_RT = before_R[:, None] + torch.arange(queries_RT.shape[1])
    later_RTW = torch.arange(keys_RW.shape[1]) > position_RT[..., None]
    return Tile(
        queries_RT=queries_RT.clamp(min=0),
        keys_RW=keys_RW.clamp(min=0),
        unread=(queries_RT.flatten() < 0).nonzero()[:, 0],
        mask_RTW=torch.zeros(later_RTW.shape).masked_fill_(later_RTW, float("-inf")),
    )


def _places(tiles: Sequence[Tensor]) -> tuple[TilePlaces, Tensor]:
    """Return the places of all stored tokens, in their order, and how many each has."""
    starts, columns, widths = [], [], []
    begin = 0
    for tile in tiles:
        rows, width = tile.shape
        starts.append((begin + torch.arange(rows) * width).repeat_interleave(width))
        columns.append(torch.arange(width).repeat(rows))
        widths.append(torch.full((rows * width,), width))
        begin += rows * width
    stored = torch.cat([tile.flatten() for tile in tiles])
    filled = (stored >= 0).nonzero()[:, 0]
    order = filled[stored[filled].argsort(stable=True)]
    places = TilePlaces(
        start_M=torch.cat(starts)[order],
        column_M=torch.cat(columns)[order],
        width_M=torch.cat(widths)[order],
    )
    return places, torch.bincount(stored[filled])


def _occurrences(laid_out: Tensor, size: int) -> dict[str, Any]:
    """Return the first and the further places of each stored token."""
    filled = (laid_out >= 0).nonzero()[:, 0]
    of = laid_out[filled]
    first_S = torch.full((size,), laid_out.numel()).scatter_reduce_(0, of, filled, "amin")
    further = filled != first_S[of]
    return {
        "laid_out": laid_out.clamp(min=0),
        "first_S": first_S,
        "again": filled[further],
        "again_of": of[further],
    }


def use_packing(model: Any) -> bool:
    """Let a causal language model read packed rows if it computes the same then; return True if it does.

    A trial on a few tokens shows models that do more in attention than scaled products. A
    sliding window would not show there: models with one are left alone.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) or {"full_attention"}
    windowed = getattr(config, "sliding_window", None) and not hasattr(config, "layer_types")
    if kinds != {"full_attention"} or windowed or not model._supports_attention_backend:
        return False
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
    before = model.config._attn_implementation
    expected = _tried(model, packed=False)
    model.set_attn_implementation(PACKED)
    same = (_tried(model, packed=True) - expected).norm() <= SAME * expected.norm()
    if not same:
        model.set_attn_implementation(before)
        return False
    _shorten(model)
    return True


def packs(model: Any) -> bool:
    """Tell if a causal language model was seen to read packed rows."""
    return bool(model.config._attn_implementation == PACKED)


@torch.no_grad()
def _tried(model: Any, *, packed: bool) -> Tensor:
    """Compute the hidden states of three rows, two of which share their prompt."""
    size = model.config.get_text_config().vocab_size
    read = ((5, 2, 3, 4, 1, 3), (5, 2, 3, 7, 8), (6, 5, 2, 9))
    lines = [tuple(token % size for token in line) for line in read]
    device = model.get_input_embeddings().weight.device
    if not packed:
        alone = [torch.tensor([line[:-1]], device=device) for line in lines]
        outputs = [model.get_decoder()(input_ids=ids, use_cache=False) for ids in alone]
        return torch.cat([out.last_hidden_state[0, 2:] for out in outputs]).float()
    rows = [
        Row(prompt_ids=line[:3], completion_ids=line[3:], advantage=None, source="new")
        for line in lines
    ]
    packing = pack(rows).to(device)
    return hidden_states(model.get_decoder(), packing).float()


class LastLayer(nn.Module):
    """Mixin for a decoder layer that adds attention, then a feed-forward part, each after a norm.

    Tokens that predict nothing are done once the others have read their keys and values: in a model's last
    layer they go no further.
    """

    def forward(self, hidden_states: Tensor, *rest: Any, **how: Any) -> Tensor:
        """Return the layer's output; of a packing only for the tokens that predict."""
        packing: Packing | None = how.get("packing")
        if packing is None or rest:
            out: Tensor = super().forward(hidden_states, *rest, **how)
            return out
        layer: Any = self
        attended = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **how)[0]
        ends = (hidden_states + attended).index_select(1, packing.ends_E)
        ended: Tensor = ends + layer.mlp(layer.post_attention_layernorm(ends))
        return ended


def _shorten(model: Any) -> None:
    """Make the last layer a `LastLayer` where it has its parts and computes the same with them."""
    layers = getattr(model.get_decoder(), "layers", None)
    last: Any = layers[-1] if isinstance(layers, nn.ModuleList) and len(layers) else None
    if last is None or isinstance(last, LastLayer) or not _has_plain_parts(last):
        return
    kind: Any = type(last)
    whole = _tried(model, packed=True)
    last.__class__ = with_mixin(LastLayer, kind)
    exact = model.dtype == torch.float32
    if (_tried(model, packed=True) - whole).norm() > (SAME_FLOAT if exact else SAME) * whole.norm():
        last.__class__ = kind


def _has_plain_parts(layer: nn.Module) -> bool:
    """Tell if a layer has the parts of `LastLayer` and no other, and a feed-forward part of single tokens.

    Experts are left alone: how many tokens one takes may depend on the others.
    """
    names = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
    parts = dict(layer.named_children())
    if parts.keys() != names or list(layer.parameters(recurse=False)):
        return False
    weighted = [
        module for module in parts["mlp"].modules() if list(module.parameters(recurse=False))
    ]
    return 2 <= len(weighted) <= 3 and all(isinstance(module, nn.Linear) for module in weighted)


def hidden_states(decoder: Callable[..., Any], packing: Packing) -> Tensor:
    """Return what a decoder makes of the predicting tokens; shape ``N`` by hidden units."""
    out: Tensor = decoder(
        input_ids=packing.tokens_S[None],
        position_ids=packing.positions_S[None],
        packing=packing,
        use_cache=False,
    ).last_hidden_state
    ended = out.shape[1] == len(packing.ends_E)
    return out[0].index_select(0, packing.of_end_N if ended else packing.where_N)


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention within each row, as transformers calls it; all of shape ``1, H, S, D``."""
    if packing is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Rotary embeddings leave autocast in float32: the values alone have the precision of the products.
    states = [states.to(value.dtype) for states in (query, key, value)]
    if value.device.type == "cpu" and packing.shape[1] <= WRITTEN_OUT:
        query_SHD, key_SKD, value_SKD = (part[0].transpose(0, 1) for part in states)
        return attend(query_SHD, key_SKD, value_SKD, packing, scale)[None], None
    query_BHTD, key_BHTD, value_BHTD = (_lay_out(part, packing) for part in states)
    out_BHTD = _fused(query_BHTD, key_BHTD, value_BHTD, scale)
    flat_BTHD = out_BHTD.transpose(1, 2).flatten(0, 1)
    flat: Tensor = _TakeBack.apply(flat_BTHD, packing)  # type: ignore[no-untyped-call]
    return flat[None], None


def _lay_out(states: Tensor, packing: Packing) -> Tensor:
    laid: Tensor = _LayOut.apply(states[0].transpose(0, 1), packing)  # type: ignore[no-untyped-call]
    return laid.view(*packing.shape, *laid.shape[1:]).transpose(1, 2)


def _fused(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip


class _LayOut(torch.autograd.Function):
    """Copy of stored tokens into padded rows: ``S, ...`` to ``B * T, ...``."""

    @staticmethod
    def forward(ctx: Any, stored: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return stored.index_select(0, packing.laid_out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        packing: Packing = ctx.packing
        summed = grad.index_select(0, packing.first_S)
        if packing.again.numel():
            summed.index_add_(0, packing.again_of, grad.index_select(0, packing.again))
        return summed, None


class _TakeBack(torch.autograd.Function):
    """Copy of padded rows back into stored tokens, each from its first place, as all its places agree."""

    @staticmethod
    def forward(ctx: Any, laid_out: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return laid_out.index_select(0, packing.first_S)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        packing: Packing = ctx.packing
        laid_out = grad.new_zeros((packing.laid_out.numel(), *grad.shape[1:]))
        return laid_out.index_copy_(0, packing.first_S, grad), None

"""Rows without padding: their tokens one after another, a prompt that several share only once.

Everything in a decoder but attention treats tokens one by one, so it sees ``S`` stored tokens and nothing
else. Attention alone lays them out as padded rows, in which shared prompts appear as often as they are
read, and takes its result back. In exact arithmetic nothing changes; a group of eight answers of 64 tokens
to a prompt of 16 has 17% fewer tokens to compute.

Legend: ``_S`` stored tokens, ``_B`` rows, ``_T`` positions of a padded row, ``_H`` heads,
``_D`` their size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from align.algorithms.micro_batch import Packing
from align.algorithms.rows import Row

PACKED = "keel_packed"
"""Name of `packed_attention` among transformers' attention implementations."""
WIDTH_STEP = 8
"""Unit of the padded rows' width, in tokens: attention over 80 places takes less time than over 79, by a
quarter without a gradient, as all rows of its matrices begin at whole vectors."""
WRITTEN_OUT = 256
"""Longest row, in tokens, whose attention matrix is written out in bfloat16 on CPU."""
WRITTEN_OUT_FLOAT = 128
"""Longest row written out in float32 with a gradient; without one the fused kernel is quicker."""
SAME = 0.02
"""Largest relative difference of hidden states that rounding to bfloat16 explains."""


def pack(rows: Sequence[Row]) -> Packing:
    """Pack rows in their order; neighbours share their prompt if it is the same.

    A row's last token predicts nothing and is left out.
    """
    tokens: list[int] = []
    positions: list[int] = []
    where: list[int] = []
    places: list[list[int]] = []
    prompt: range = range(0)
    for index, row in enumerate(rows):
        if index == 0 or row.prompt_ids != rows[index - 1].prompt_ids:
            prompt = range(len(tokens), len(tokens) + len(row.prompt_ids))
            tokens.extend(row.prompt_ids)
            positions.extend(range(len(prompt)))
        answer = range(len(tokens), len(tokens) + len(row.completion_ids) - 1)
        tokens.extend(row.completion_ids[:-1])
        positions.extend(range(len(prompt), len(prompt) + len(answer)))
        where.extend([prompt[-1], *answer])
        places.append([*prompt, *answer])
    width = -(-max(map(len, places)) // WIDTH_STEP) * WIDTH_STEP
    laid_out = torch.tensor([row + [-1] * (width - len(row)) for row in places]).flatten()
    return Packing(
        tokens_S=torch.tensor(tokens),
        positions_S=torch.tensor(positions),
        where_N=torch.tensor(where),
        shape=(len(rows), width),
        **_occurrences(laid_out, len(tokens)),
    )


def _occurrences(laid_out: Tensor, size: int) -> dict[str, Tensor]:
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
    """Let a causal language model read packed rows if it computes the same then; whether it does.

    It is tried out on a few tokens, which shows models that do more in attention than scaled products. A
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
    return bool(same)


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
    return hidden_states(model.get_decoder(), packing)[packing.where_N].float()


def hidden_states(decoder: Callable[..., Any], packing: Packing) -> Tensor:
    """Run the decoder over the stored tokens; return hidden states of shape ``S, H``."""
    out: Tensor = decoder(
        input_ids=packing.tokens_S[None],
        position_ids=packing.positions_S[None],
        packing=packing,
        use_cache=False,
    ).last_hidden_state
    return out[0]


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
    # Rotary embeddings leave autocast in float32: the values alone have the precision of the products.
    queries, keys, values = (
        _lay_out(states.to(value.dtype), packing) for states in (query, key, value)
    )
    attend = _written_out if _is_short(value, packing.shape[1]) else _fused
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out_BHTD = attend(queries, keys, values, scale)
    flat_BTHD = out_BHTD.transpose(1, 2).flatten(0, 1)
    flat: Tensor = _TakeBack.apply(flat_BTHD, packing)  # type: ignore[no-untyped-call]
    return flat[None], None


def _is_short(value: Tensor, width: int) -> bool:
    """Tell if attention over rows of this width is quicker written out than fused."""
    if value.device.type != "cpu":
        return False
    if value.dtype == torch.float32:
        return value.requires_grad and width <= WRITTEN_OUT_FLOAT
    return value.dtype == torch.bfloat16 and width <= WRITTEN_OUT


def _lay_out(states: Tensor, packing: Packing) -> Tensor:
    laid: Tensor = _LayOut.apply(states[0].transpose(0, 1), packing)  # type: ignore[no-untyped-call]
    return laid.view(*packing.shape, *laid.shape[1:]).transpose(1, 2)


def _fused(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip


def _written_out(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Compute attention by matrix products.

    On a CPU the fused kernel's backward is slower: in bfloat16 several times, in float32 by a fifth.
    Query heads that share a key head are one long query.
    """
    (rows, heads, width, size), shared = query.shape, key.shape[1]
    long = (query * scaling).reshape(rows * shared, -1, size)
    flat_key, flat_value = (states.reshape(rows * shared, width, size) for states in (key, value))
    future = torch.full((width, width), float("-inf"), dtype=query.dtype).triu_(1)
    weights = torch.bmm(long, flat_key.transpose(1, 2)).view(-1, width, width).add_(future)
    out = torch.bmm(weights.softmax(-1).view(len(long), -1, width), flat_value)
    return out.view(rows, heads, width, size)


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

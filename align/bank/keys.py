"""Keys of adapters in the space of a frozen encoder: similarity, beginnings and training (DTKR).

A query ``q = E(x)`` of width ``C`` is split into ``G`` groups, and so is every key. The similarity of a
prompt and a key is the mean cosine over the groups; each sees other features, so a key need not win in all:

    s[b, p] = mean_g cos(q[b, g], k[g, p])

The keys of a round are trained before its adapter, without the policy (stage 1). Every similarity is masked
with probability ``mask``, so that no key takes all prompts of a round; the ``K`` nearest keys of each group
are then drawn to the query, and optionally pushed off the keys of earlier rounds (``centrifugal``):

    loss = -mean_{b, g, top-K p} cos(q[b, g], k[g, p])
           + centrifugal * mean_{g, p, old o} cos(k[g, p], k_old[g, o])

Source: Peng et al. 2024, arXiv 2404.07470, with the settings of the code that was released with it. Shapes:
``B`` prompts, ``C`` encoder width, ``G`` groups, ``P`` keys, ``O`` keys of earlier rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from align.config.policy import BankConfig

MASKED = -100.0
"""Similarity of a masked key, below every cosine."""
CLIP = 0.1
"""Largest norm of a gradient of the keys."""


def grouped(vectors_BC: Tensor, groups: int) -> Tensor:
    """Split vectors into groups of features, ``B, G, C / G``."""
    return vectors_BC.reshape(len(vectors_BC), groups, -1)


def group_similarity(queries_BC: Tensor, keys_GPC: Tensor) -> Tensor:
    """Return the cosine of each query and key in every group, ``B, G, P``."""
    queries_BGC = normalize(grouped(queries_BC, len(keys_GPC)), dim=-1)
    return torch.einsum("bgc,gpc->bgp", queries_BGC, normalize(keys_GPC, dim=-1))


def average_keys(queries_BC: Tensor, count: int, groups: int) -> Tensor:
    """Return the means of ``count`` interleaved subsets of the queries as keys, ``G, P, C / G``.

    With fewer queries than keys, queries serve several times.
    """
    repeated_BC = queries_BC.repeat(-(-count // len(queries_BC)), 1)
    means_PC = torch.stack([repeated_BC[start::count].mean(0) for start in range(count)])
    return grouped(means_PC, groups).transpose(0, 1).contiguous()


def orthogonal_keys(width: int, count: int, groups: int, generator: torch.Generator) -> Tensor:
    """Return random keys, orthogonal within each group for as many as its features allow."""
    size = width // groups
    blocks = [
        torch.linalg.qr(torch.randn(groups, size, size, generator=generator)).Q
        for _ in range(-(-count // size))
    ]
    return torch.cat(blocks, dim=1)[:, :count].contiguous()


def key_loss(similarity_BGP: Tensor, top_k: int, mask: float, generator: torch.Generator) -> Tensor:
    """Return the negated mean similarity of the nearest keys of each group that are not masked."""
    drawn_BGP = torch.rand(similarity_BGP.shape, generator=generator)
    ranked_BGP = similarity_BGP.detach().masked_fill(drawn_BGP < mask, MASKED)
    nearest_BGK = ranked_BGP.topk(min(top_k, ranked_BGP.shape[-1]), dim=-1).indices
    return -similarity_BGP.gather(-1, nearest_BGK).mean()


def centrifugal_loss(keys_GPC: Tensor, old_GOC: Tensor) -> Tensor:
    """Return the mean cosine of new and earlier keys."""
    return torch.einsum(
        "gpc,goc->gpo", normalize(keys_GPC, dim=-1), normalize(old_GOC, dim=-1)
    ).mean()


def train_keys(
    queries_BC: Tensor, config: BankConfig, *, seed: int, old_GOC: Tensor | None = None
) -> Tensor:
    """Train the keys of one round on the queries of its prompts; return them, ``G, P, C / G``.

    Queries count by their direction alone, so that a step of the keys is as large for every encoder.

    Args:
        seed: decides the order of prompts, the masks and a random beginning.
        old_GOC: keys of earlier rounds, which stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    queries_BC = normalize(queries_BC.detach().float().cpu(), dim=-1)
    if config.init == "average":
        keys_GPC = average_keys(queries_BC, config.keys, config.groups)
    else:
        keys_GPC = orthogonal_keys(queries_BC.shape[1], config.keys, config.groups, generator)
    keys_GPC.requires_grad_()
    optimizer = torch.optim.AdamW([keys_GPC], lr=config.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1)
    with torch.enable_grad():
        for _ in range(config.epochs):
            order = torch.randperm(len(queries_BC), generator=generator)
            for indices in torch.split(order, config.batch):
                similarity_BGP = group_similarity(queries_BC[indices], keys_GPC)
                loss = key_loss(similarity_BGP, config.top_k, config.mask, generator)
                if old_GOC is not None and old_GOC.shape[1] and config.centrifugal:
                    loss = loss + config.centrifugal * centrifugal_loss(keys_GPC, old_GOC)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_([keys_GPC], CLIP)
                optimizer.step()
            if config.epochs > 1:
                schedule.step()
    return keys_GPC.detach()

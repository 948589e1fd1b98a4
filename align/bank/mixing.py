"""Weights of the increments of a bank for each prompt: joint adaptive reparameterization (JARe).

Of the similarities ``s`` of a prompt with all keys the ``K`` largest count, each in proportion to itself:

    w_i = s_i / sum_{j in top-K} s_j,    W(x) = W + sum_i w_i c B_i A_i

``c`` is LoRA's scale. A similarity below 0 counts as 0; if none is above 0, the nearest key has all the
weight. Per prompt this is the paper's equation. Its released code averages ``s`` over a batch before it
chooses, as if all prompts came from one task: ``mixing: batch`` does so, for comparison.

Source: Peng et al. 2024, arXiv 2404.07470, section 3.2. Shapes: ``B`` prompts, ``G`` groups, ``P`` keys.
"""

from __future__ import annotations

from torch import Tensor

SMALLEST = 1e-9
"""Smallest sum of similarities that weights are divided by."""


def mixing_weights(similarity_BGP: Tensor, top_k: int, *, per_batch: bool = False) -> Tensor:
    """Return the weight of every key for each prompt, ``B, P``; at most ``top_k`` of a row are above 0.

    Args:
        per_batch: give all prompts the weights of their mean similarity.
    """
    similarity_BP = similarity_BGP.mean(1)
    if per_batch:
        similarity_BP = similarity_BP.mean(0, keepdim=True).expand_as(similarity_BP)
    nearest = similarity_BP.topk(min(top_k, similarity_BP.shape[1]), dim=-1)
    values_BK = nearest.values.clamp(min=0.0)
    total_B1 = values_BK.sum(-1, keepdim=True)
    shares_BK = values_BK / total_B1.clamp(min=SMALLEST)
    shares_BK[:, 0] = shares_BK[:, 0].where(total_B1[:, 0] >= SMALLEST, 1.0)
    return similarity_BP.new_zeros(similarity_BP.shape).scatter(-1, nearest.indices, shares_BK)

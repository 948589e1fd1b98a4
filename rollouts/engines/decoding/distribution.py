"""Distribution that the next token is drawn from: temperature, min-p, top-k and top-p as vLLM defines them.

Shapes: ``B`` rows, ``V`` tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from rollouts.types import Sampling

GREEDY = 1e-5
"""Temperature below which the most likely token is taken."""
COLDEST = 1e-2
"""Least temperature that is not greedy; a lower one counts as this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingColumns:
    """Sampling parameters of the rows of a batch, one column each."""

    temperature_B: Tensor
    min_p_B: Tensor
    top_k_B: Tensor
    """Number of tokens that may be drawn; the whole vocabulary where there is no bound."""
    top_p_B: Tensor

    @classmethod
    def of(cls, samplings: Sequence[Sampling], vocabulary: int, device: torch.device) -> Self:
        """Build the columns of a batch."""

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        top_k = [s.top_k if 0 < s.top_k < vocabulary else vocabulary for s in samplings]
        return cls(
            temperature_B=column(
                [0.0 if t < GREEDY else max(t, COLDEST) for t in (s.temperature for s in samplings)]
            ),
            min_p_B=column([s.min_p for s in samplings]),
            top_k_B=torch.tensor(top_k, device=device),
            top_p_B=column([s.top_p for s in samplings]),
        )


def sampled_logprobs(logits_BV: Tensor, columns: SamplingColumns) -> Tensor:
    """Return the log of the distribution that each row is drawn from, in float32.

    A greedy row keeps the model's own distribution, without any bound. min-p is applied to the tempered
    distribution, then top-k, which keeps ties of the least logit, then top-p to what is left.
    """
    greedy_B = columns.temperature_B == 0.0
    logits_BV = logits_BV.float() / torch.where(greedy_B, 1.0, columns.temperature_B)[:, None]
    least_B = torch.where(greedy_B, 0.0, columns.min_p_B)
    if bool((least_B > 0).any()):
        probs_BV = logits_BV.softmax(-1)
        low_BV = probs_BV < probs_BV.amax(-1, keepdim=True) * least_B[:, None]
        logits_BV = logits_BV.masked_fill(low_BV, -torch.inf)
    vocabulary = logits_BV.shape[-1]
    kept_B = torch.where(greedy_B, vocabulary, columns.top_k_B)
    nucleus_B = torch.where(greedy_B, 1.0, columns.top_p_B)
    if bool((kept_B < vocabulary).any()) or bool((nucleus_B < 1.0).any()):
        logits_BV = _truncated(logits_BV, kept_B, nucleus_B)
    return logits_BV.log_softmax(-1)


def _truncated(logits_BV: Tensor, kept_B: Tensor, nucleus_B: Tensor) -> Tensor:
    """Keep each row's ``kept`` largest logits, and of these the fewest that hold its nucleus."""
    sorted_BV, order_BV = logits_BV.sort(dim=-1)
    least_B1 = sorted_BV.gather(-1, (logits_BV.shape[-1] - kept_B)[:, None])
    sorted_BV = sorted_BV.masked_fill(sorted_BV < least_B1, -torch.inf)
    outside_BV = sorted_BV.softmax(-1).cumsum(-1) <= 1 - nucleus_B[:, None]
    outside_BV[:, -1] = False
    bounded_BV = (nucleus_B < 1.0)[:, None] & outside_BV
    sorted_BV = sorted_BV.masked_fill(bounded_BV, -torch.inf)
    return torch.empty_like(logits_BV).scatter_(-1, order_BV, sorted_BV)


def draw(logprobs_BV: Tensor, columns: SamplingColumns, uniform_B: Tensor) -> Tensor:
    """Draw a token for each row: the one at which the cumulated probability passes ``uniform_B`` in [0, 1).

    Rows are independent, and one uniform number decides one token, so a row draws the same in every batch.
    """
    cumulated_BV = logprobs_BV.double().exp().cumsum(-1)
    total_B1 = cumulated_BV[:, -1:]
    below_B1 = torch.nextafter(total_B1, torch.zeros_like(total_B1))
    passed_B1 = torch.minimum(uniform_B[:, None] * total_B1, below_B1)
    drawn_B = torch.searchsorted(cumulated_BV, passed_B1, right=True)[:, 0]
    drawn_B = drawn_B.clamp(max=logprobs_BV.shape[-1] - 1)  # Rows that are not finite draw nothing.
    return torch.where(columns.temperature_B == 0.0, logprobs_BV.argmax(-1), drawn_B)

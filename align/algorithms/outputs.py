"""Outputs of a model at the completion tokens of one forward pass, with no more logits than needed.

Legend: ``_N`` completion tokens, ``_D`` hidden size, ``_V`` vocabulary. With a small vocabulary the
log-probabilities of all tokens are computed once and shared by all who read them. Beyond `CHUNK` floats
they are computed piece by piece, and again in the backward pass, so that peak memory does not grow with
``N * V``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from align.algorithms.divergences import few_rows

CHUNK = 1 << 25
"""Largest number of log-probabilities in memory at once for one model, in floats (128 MiB)."""

Divergence = Callable[[Tensor, Tensor], Tensor]
"""Function of two models' log-probabilities, each ``n, V``, that returns nats per token, ``n``."""


@dataclass
class Outputs:
    """Log-probabilities of one model at the sampling temperature, where completions are drawn."""

    hidden_ND: Tensor
    head: Callable[[Tensor], Tensor]
    targets_N: Tensor
    temperature: float
    dtype: torch.dtype
    vocabulary: int
    chunk: int = CHUNK
    values_N: Tensor | None = None
    """Values of the critic, with gradient; None without a critic."""
    teacher: Outputs | None = None
    """Outputs of the model that is distilled, at the same tokens."""
    given_NV: Tensor | None = field(default=None, repr=False)

    @property
    def fits(self) -> bool:
        """True if the log-probabilities of all tokens may be in memory at once."""
        return len(self.targets_N) * self.vocabulary <= self.chunk

    @cached_property
    def logprobs_NV(self) -> Tensor:
        """Log-probabilities over the whole vocabulary; only for outputs that `fits` is true of."""
        return self._log_softmax(self.hidden_ND) if self.given_NV is None else self.given_NV

    @property
    def logprobs_N(self) -> Tensor:
        """Log-probabilities of the completion tokens, in nats, with gradient."""
        return self._tokens[0]

    @property
    def entropy_N(self) -> Tensor:
        """Entropy of the distribution at each completion token, in nats, without gradient."""
        return self._tokens[1]

    def at(self, index_M: Tensor) -> Outputs:
        """Return the outputs of the model, and of its teacher, at the tokens of ``index_M``."""
        return replace(
            self,
            hidden_ND=self.hidden_ND[index_M],
            targets_N=self.targets_N[index_M],
            values_N=None if self.values_N is None else self.values_N[index_M],
            teacher=None if self.teacher is None else self.teacher.at(index_M),
            given_NV=self.logprobs_NV[index_M] if self.fits else None,
        )

    def tempered(self, temperature: float) -> Outputs:
        """Return the outputs at the same tokens under another temperature."""
        if temperature == self.temperature:
            return self
        return replace(self, temperature=temperature, given_NV=None)

    def divergence(self, other: Outputs, between: Divergence) -> Tensor:
        """Compute a divergence of two models over the whole vocabulary, nats per token; shape ``N``."""
        if self.fits:
            return between(self.logprobs_NV, other.logprobs_NV)

        def piece(own_nD: Tensor, other_nD: Tensor) -> Tensor:
            return between(self._log_softmax(own_nD), other._log_softmax(other_nD))

        return torch.cat(
            [
                _again(piece, own_nD, other_nD)
                for own_nD, other_nD in zip(
                    self._pieces(self.hidden_ND), self._pieces(other.hidden_ND), strict=True
                )
            ]
        )

    @cached_property
    def _tokens(self) -> tuple[Tensor, Tensor]:
        if self.fits:
            return _token_outputs(self.logprobs_NV, self.targets_N)

        def piece(hidden_nD: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor]:
            return _token_outputs(self._log_softmax(hidden_nD), targets_n)

        pieces = [
            _again(piece, hidden_nD, targets_n)
            for hidden_nD, targets_n in zip(
                self._pieces(self.hidden_ND), self._pieces(self.targets_N), strict=True
            )
        ]
        return torch.cat([chosen for chosen, _ in pieces]), torch.cat([h for _, h in pieces])

    def _pieces(self, rows: Tensor) -> tuple[Tensor, ...]:
        return torch.split(rows, max(1, self.chunk // self.vocabulary))

    def _log_softmax(self, hidden_nD: Tensor) -> Tensor:
        low = self.dtype != torch.float32
        with torch.autocast(hidden_nD.device.type, self.dtype, enabled=low, cache_enabled=False):
            logits_nV = self.head(hidden_nD)
        logits_nV = logits_nV.float()
        if self.temperature != 1.0:
            logits_nV = logits_nV / self.temperature
        return logits_nV.log_softmax(-1)


def _token_outputs(logprobs_nV: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor]:
    own_n = logprobs_nV.gather(-1, targets_n[:, None])[:, 0]
    with torch.no_grad():
        entropy_n = torch.cat([-part.exp().mul_(part).sum(-1) for (part,) in few_rows(logprobs_nV)])
    return own_n, entropy_n


def _again(piece: Callable[..., Any], *inputs: Tensor) -> Any:
    """Run a piece now and, where a gradient is taken, once more then."""
    if not torch.is_grad_enabled():
        return piece(*inputs)
    return checkpoint(piece, *inputs, use_reentrant=False)

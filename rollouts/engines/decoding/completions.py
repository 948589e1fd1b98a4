"""Completions under way: their tokens so far, their random numbers and what ends them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from rollouts.engines.decoding.distribution import SamplingColumns, draw, sampled_logprobs
from rollouts.engines.turns import OpenRequest
from rollouts.types import Completion, FinishReason, Mix, Sampling, WeightSpan, WeightVersion

DRAWN_TOGETHER = 4 << 20
"""Most logits that tokens are drawn from at a time; drawing takes some 32 bytes for each."""

Decode = Callable[[Sequence[int]], str]
"""Text of a completion's tokens, without special tokens."""


@dataclass(kw_only=True, slots=True)
class OpenCompletion:
    """One completion under way."""

    opened: OpenRequest
    """Request that it belongs to."""
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    limit: int
    """Tokens that it may have."""
    ends: frozenset[int]
    """Tokens that end it."""
    decode: Decode | None
    """Reader of its text where texts end it too, else None."""
    uniforms: np.ndarray[tuple[int], np.dtype[np.float64]]
    """Random number in [0, 1) of every token to come."""
    mix: Mix = ()
    """Adapters of a bank that answer."""
    token_ids: list[int] = field(default_factory=list)
    logprobs_T: list[float] = field(default_factory=list)
    spans: list[WeightSpan] = field(default_factory=list)
    finish: FinishReason | None = None
    detail: str | None = None

    @property
    def row(self) -> list[int]:
        """Everything that the model has to read before the next token."""
        return [*self.prompt_ids, *self.token_ids]

    @property
    def length(self) -> int:
        """Number of tokens in its row."""
        return len(self.prompt_ids) + len(self.token_ids)

    @property
    def uniform(self) -> float:
        """Random number of the next token."""
        return float(self.uniforms[len(self.token_ids)])

    def take(self, token: int, logprob: float, version: WeightVersion) -> None:
        """Add a token that was drawn under some weights."""
        if not math.isfinite(logprob):
            self.finish, self.detail = "failed", "the model's logits are not finite"
            return
        start = len(self.token_ids)
        self.token_ids.append(token)
        self.logprobs_T.append(logprob)
        if self.spans and self.spans[-1].version == version:
            self.spans[-1] = self.spans[-1]._replace(end=start + 1)
        else:
            self.spans.append(WeightSpan(version, start, start + 1))
        text = "" if self.decode is None else self.decode(self.token_ids)
        if token in self.ends or any(stop in text for stop in self.sampling.stop_texts):
            self.finish = "stop"
        elif start + 1 >= self.limit:
            self.finish = "length"

    def completion(self) -> Completion:
        """Return the whole of it, once it is finished."""
        assert self.finish is not None
        if self.finish == "failed":
            return Completion.failed(self.detail or "no reason was given")
        return Completion(
            token_ids=tuple(self.token_ids),
            logprobs_T=tuple(self.logprobs_T),
            text="",
            finish_reason=self.finish,
            weight_versions=tuple(self.spans),
        )


def open_completions(
    opened: OpenRequest, *, limit: int, ends: frozenset[int], decode: Decode | None
) -> list[OpenCompletion]:
    """Open the ``n`` completions of a request; their random numbers follow from its seed alone."""
    request = opened.request
    sampling = request.sampling
    completions = []
    for number in range(request.n):
        # A stream of its own for each completion: neighbouring seeds share nothing.
        digest = blake2b(f"{request.seed}/{number}".encode(), digest_size=16).digest()
        stream = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))
        completions.append(
            OpenCompletion(
                opened=opened,
                prompt_ids=request.prompt_ids,
                sampling=sampling,
                limit=limit,
                ends=ends | frozenset(sampling.stop_token_ids),
                decode=decode if sampling.stop_texts else None,
                uniforms=stream.random(limit),
                mix=request.mix or (),
            )
        )
    return completions


@torch.inference_mode()
def take_next(
    logits_BV: Tensor, completions: Sequence[OpenCompletion], version: WeightVersion
) -> None:
    """Draw the next token of every completion from its row of logits."""
    vocabulary, device = logits_BV.shape[-1], logits_BV.device
    rows = max(1, DRAWN_TOGETHER // vocabulary)
    for start in range(0, len(completions), rows):
        part = completions[start : start + rows]
        columns = SamplingColumns.of([c.sampling for c in part], vocabulary, device)
        uniform_B = torch.tensor([c.uniform for c in part], dtype=torch.float64, device=device)
        logprobs_BV = sampled_logprobs(logits_BV[start : start + rows], columns)
        drawn_B = draw(logprobs_BV, columns, uniform_B)
        taken_B = logprobs_BV.gather(-1, drawn_B[:, None])[:, 0]
        for each, token, logprob in zip(part, drawn_B.tolist(), taken_B.tolist(), strict=True):
            each.take(token, logprob, version)

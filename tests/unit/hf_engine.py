"""A real sampler in the test's own process: the learner's kind of model, without vLLM or Ray.

It keeps the whole engine contract, so that a round runs from end to end in a second. Completions
follow from the request's seed and the weights alone. On request it lies, as a broken engine would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align.learner.model.loading import convert_weights
from rollouts.engines.protocol import (
    SampleRequest,
    SampleResult,
    ScoreRequest,
    SyncReport,
    Ticket,
    WeightUpdate,
)
from rollouts.engines.stored_tensor import read_stored
from rollouts.types import Completion, Sampling, WeightSpan


class HFEngine:
    """A `RolloutEngine` over one float32 transformers model that takes full weights.

    Attributes:
        deaf_from: this sync, counted from 1, and all later ones take the version without the weights.
        sample_lie, score_lie: added to the last logprob of every sequence of `generate`, of `score`.
        versions: of every sync, in order.
    """

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=trust_remote_code
        )
        self._model: Any = model.eval()
        self._eos = int(self._model.config.eos_token_id)
        self.deaf_from: int | None = None
        self.sample_lie = self.score_lie = 0.0
        self.versions: list[str] = ["base"]
        self.closed = False

    def submit(self, requests: Sequence[SampleRequest]) -> Ticket:
        """Sample now; there is nobody to do it meanwhile."""
        results = self.generate(requests)
        return lambda: results

    def generate(self, requests: Sequence[SampleRequest]) -> list[SampleResult]:
        """Sample the completions of all requests together, one position at a time."""
        owners = [request for request in requests for _ in range(request.n)]
        (sampling,) = {request.sampling for request in requests}
        seeds = [request.seed + i for request in requests for i in range(request.n)]
        completions = iter(self._sample([r.prompt_ids for r in owners], seeds, sampling))
        return [
            SampleResult(
                id=request.id, completions=tuple(next(completions) for _ in range(request.n))
            )
            for request in requests
        ]

    @torch.no_grad()
    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        """Logprobs of the completions, from one padded forward pass."""
        rows = [(*request.prompt_ids, *request.completion_ids) for request in requests]
        logprobs_BTV = self._model(input_ids=_padded(rows)).logits.log_softmax(-1)
        return [
            tuple(
                float(logprobs_BTV[b, len(r.prompt_ids) + t - 1, token])
                + (self.score_lie if t + 1 == len(r.completion_ids) else 0.0)
                for t, token in enumerate(r.completion_ids)
            )
            for b, r in enumerate(requests)
        ]

    def sync(self, update: WeightUpdate) -> SyncReport:
        """Load full weights and take their version."""
        assert update.tensors is not None, "this engine takes full weights"
        if self.deaf_from is None or len(self.versions) < self.deaf_from:
            self._load(read_stored(update.tensors), update.version)
        self.versions.append(update.version)
        return SyncReport(version=update.version, seconds=0.0, num_engines=1)

    def _load(self, tensors: Mapping[str, Tensor], version: str) -> None:
        """Load the tensors of a model's files, as vLLM does: by their names and shapes, and all of them."""
        own = self._model.state_dict()
        given = {own[name].data_ptr() for name in tensors if name in own}
        absent = own.keys() - tensors.keys()
        if tensors.keys() <= own.keys() and all(own[name].data_ptr() in given for name in absent):
            # Files and memory have the same names, and what is absent is tied to what is there.
            self._model.load_state_dict(tensors, strict=False)
        else:
            self._model.load_state_dict(convert_weights(self._model, tensors.items(), version))

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True

    @torch.no_grad()
    def _sample(
        self, prompts: Sequence[tuple[int, ...]], seeds: Sequence[int], sampling: Sampling
    ) -> list[Completion]:
        rows = [list(prompt) for prompt in prompts]
        logprobs: list[list[float]] = [[] for _ in rows]
        noise_BTV = torch.stack([_gumbel(seed, sampling, self._vocabulary) for seed in seeds])
        live = list(range(len(rows)))
        for position in range(sampling.max_tokens):
            logits_BTV = self._model(input_ids=_padded([rows[i] for i in live])).logits
            last = torch.tensor([len(rows[i]) - 1 for i in live])
            logits_BV = logits_BTV[torch.arange(len(live)), last]
            logits_BV = logits_BV / (sampling.temperature or 1.0)
            # Gumbel's trick: the largest of logits plus noise is a draw from the softmax.
            chosen_B = (logits_BV + noise_BTV[live, position]).argmax(-1)
            taken_B = logits_BV.log_softmax(-1).gather(-1, chosen_B[:, None])[:, 0]
            for i, token, logprob in zip(live, chosen_B.tolist(), taken_B.tolist(), strict=True):
                rows[i].append(token)
                logprobs[i].append(logprob)
            live = [i for i in live if rows[i][-1] != self._eos]
            if not live:
                break
        return [
            self._completion(row[len(prompt) :], values)
            for row, prompt, values in zip(rows, prompts, logprobs, strict=True)
        ]

    @property
    def _vocabulary(self) -> int:
        return int(self._model.config.vocab_size)

    def _completion(self, token_ids: list[int], logprobs: list[float]) -> Completion:
        return Completion(
            token_ids=tuple(token_ids),
            logprobs_T=(*logprobs[:-1], logprobs[-1] + self.sample_lie),
            text="",
            finish_reason="stop" if token_ids[-1] == self._eos else "length",
            weight_versions=(WeightSpan(self.versions[-1], 0, len(token_ids)),),
        )


def _gumbel(seed: int, sampling: Sampling, vocabulary: int) -> Tensor:
    """Noise of one completion, ``T, V``; none at temperature 0, which leaves the greedy choice."""
    generator = torch.Generator().manual_seed(seed)
    uniform_TV = torch.rand((sampling.max_tokens, vocabulary), generator=generator)
    gumbel_TV = -torch.log(-torch.log(uniform_TV.clamp(1e-9, 1 - 1e-7)))
    return gumbel_TV * (sampling.temperature > 0)


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row] + [0] * (width - len(row)) for row in rows])

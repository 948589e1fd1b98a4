"""Between our requests and vLLM's: sampling parameters in, completions and scores out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from rollouts.engines.protocol import SampleRequest, ScoreRequest
from rollouts.types import Completion, Sampling, WeightSpan

if TYPE_CHECKING:
    from vllm import SamplingParams

LOGITS_OF_PROMPTS_MIB = {"cpu": 128, "cuda": 2048}
"""Logits of all sequences that are scored at the same time; with their logprobs it is about three times as
much. vLLM keeps those of a whole step until the step ends."""


def distinct_seed(seed: int) -> int:
    """Return a 62-bit seed unrelated to that of ``seed + 1``.

    vLLM seeds the n completions of a request with seed, seed + 1, ...: without this, two requests
    with neighbouring seeds would share all but one of their random streams.
    """
    return int.from_bytes(blake2b(str(seed).encode(), digest_size=8).digest(), "big") >> 2


def sampling_params(request: SampleRequest) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling: Sampling = request.sampling
    return SamplingParams(
        n=request.n,
        seed=distinct_seed(request.seed),
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        stop_token_ids=list(sampling.stop_token_ids),
        stop=list(sampling.stop_texts),
        logprobs=0,
        # One list of floats per completion in place of a dict per token.
        flat_logprobs=True,
        detokenize=bool(sampling.stop_texts),
        output_kind=RequestOutputKind.FINAL_ONLY,
        # These parameters belong to this request alone, so vLLM may skip its deep copy.
        skip_clone=True,
    )


def completions(output: Any, n: int) -> tuple[Completion, ...]:
    if output is None or isinstance(output, str):
        return (Completion.failed(output or "vLLM returned nothing"),) * n
    return tuple(map(_completion, output.outputs))


def _completion(sample: Any) -> Completion:
    if sample.finish_reason not in ("stop", "length"):
        return Completion.failed(f"vLLM ended the request with {sample.finish_reason!r}")
    spans = sample.weight_versions or ()
    return Completion(
        token_ids=tuple(sample.token_ids),
        logprobs_T=tuple(sample.logprobs.logprobs),
        text="",
        finish_reason=sample.finish_reason,
        weight_versions=tuple(WeightSpan(s.version, s.start, s.end) for s in spans),
    )


def scores(request: ScoreRequest, output: Any) -> tuple[float, ...]:
    if output is None or isinstance(output, str):
        raise ValueError(f"a sequence could not be scored: {output or 'vLLM returned nothing'}")
    # vLLM holds one value per token but the first, which nothing precedes.
    values = output.prompt_logprobs.logprobs
    return tuple(values[len(values) - len(request.completion_ids) :])


def scored_together(
    requests: Sequence[ScoreRequest], vocab_size: int, mib: int
) -> Iterator[Sequence[ScoreRequest]]:
    """Split requests, in their order, so that a part's logits in float32 take at most ``mib`` MiB.

    A longer request is a part of its own.
    """
    most = (mib << 20) // (4 * vocab_size)
    start = tokens = 0
    for index, request in enumerate(requests):
        tokens += len(request.prompt_ids) + len(request.completion_ids)
        if tokens > most and index > start:
            yield requests[start:index]
            start, tokens = index, len(request.prompt_ids) + len(request.completion_ids)
    if start < len(requests):
        yield requests[start:]

"""Ask an engine for the completions of some prompts and hand back groups with text.

Ids and seeds of the requests follow from the seed, the prompt and its place in the batch, so the
same step asked again, after a restart too, asks the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rollouts.engine import RolloutEngine, SampleRequest, SampleResult, Ticket
from rollouts.errors import RunError, UserError
from rollouts.prompts import PromptEncoder
from rollouts.types import (
    Completion,
    Prompt,
    RolloutGroup,
    Sampling,
    SnapshotId,
    WeightVersion,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pending:
    """Rollouts that an engine was asked for."""

    prompts: Sequence[Prompt]
    requests: Sequence[SampleRequest]
    ticket: Ticket
    encoder: PromptEncoder
    policy: SnapshotId | WeightVersion

    def groups(self) -> list[RolloutGroup]:
        """Wait for them: one group per prompt, in order.

        A failed completion stays in its group. Raises `RunError` when the engine answers something
        else than it was asked.
        """
        results = self.ticket()
        _check_answers(self.requests, results)
        return [
            RolloutGroup(
                prompt=prompt,
                prompt_ids=request.prompt_ids,
                completions_G=tuple(_decoded(c, self.encoder) for c in result.completions),
                policy=self.policy,
                seed=request.seed,
            )
            for prompt, request, result in zip(self.prompts, self.requests, results, strict=True)
        ]


def begin(
    engine: RolloutEngine,
    prompts: Sequence[Prompt],
    group_sizes: Sequence[int],
    encoder: PromptEncoder,
    sampling: Sampling,
    seed: int,
    policy: SnapshotId | WeightVersion,
) -> Pending:
    """Ask for ``group_sizes`` completions of each prompt, and wait for nothing."""
    requests = [
        _request(prompt, size, position, encoder, sampling, seed)
        for position, (prompt, size) in enumerate(zip(prompts, group_sizes, strict=True))
    ]
    ticket = engine.submit(requests) if requests else list
    return Pending(
        prompts=prompts, requests=requests, ticket=ticket, encoder=encoder, policy=policy
    )


def collect(
    engine: RolloutEngine,
    prompts: Sequence[Prompt],
    group_sizes: Sequence[int],
    encoder: PromptEncoder,
    sampling: Sampling,
    seed: int,
    policy: SnapshotId | WeightVersion,
) -> list[RolloutGroup]:
    """One group per prompt, in order, of ``group_sizes`` completions with their text."""
    return begin(engine, prompts, group_sizes, encoder, sampling, seed, policy).groups()


def check_lengths(
    prompts: Sequence[Prompt],
    encoder: PromptEncoder,
    max_tokens: int,
    max_model_len: int,
    where: str | None = None,
) -> None:
    """Raise a `UserError` when a prompt with ``max_tokens`` after it does not fit the context."""
    lengths = [len(encoder.encode(prompt)) for prompt in prompts]
    too_long = [i for i, length in enumerate(lengths) if length + max_tokens > max_model_len]
    if too_long:
        worst = max(too_long, key=lambda i: lengths[i])
        beginning = (prompts[worst].text or str(prompts[worst].messages))[:60]
        raise UserError(
            f"prompt {prompts[worst].id!r} has {lengths[worst]} tokens and max_tokens is "
            f"{max_tokens}, more than the context of {max_model_len}; {len(too_long)} of "
            f"{len(prompts)} prompts are too long, this one is the longest",
            where=where,
            cause=f"it begins {beginning!r}",
            remedy="shorten or drop these prompts, lower sampling.max_tokens, "
            "or raise rollouts.max_model_len",
        )


def _request(
    prompt: Prompt, n: int, position: int, encoder: PromptEncoder, sampling: Sampling, seed: int
) -> SampleRequest:
    if n < 1:
        raise ValueError(f"prompt {prompt.id!r}: group size {n} is not positive")
    request_id = f"{seed}/{position}/{prompt.id}"
    digest = hashlib.sha256(request_id.encode()).digest()
    return SampleRequest(
        id=request_id,
        prompt_ids=encoder.encode(prompt),
        n=n,
        sampling=sampling,
        # 31 bits: every sampler's generator takes a non-negative int32.
        seed=int.from_bytes(digest[:4], "big") >> 1,
    )


def _decoded(completion: Completion, encoder: PromptEncoder) -> Completion:
    if completion.finish_reason == "failed":
        return completion
    return replace(completion, text=encoder.decode(completion.token_ids))


def _check_answers(requests: Sequence[SampleRequest], results: Sequence[SampleResult]) -> None:
    asked = [(request.id, request.n) for request in requests]
    answered = [(result.id, len(result.completions)) for result in results]
    if asked != answered:
        pairs = zip(asked, answered, strict=False)
        wrong = next((pair for pair in pairs if pair[0] != pair[1]), (len(asked), len(answered)))
        raise RunError(
            f"the engine was asked {wrong[0]} (request, completions) and answered {wrong[1]}",
            where="rollout engine",
        )

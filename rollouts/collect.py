"""Ask an engine for the completions of some prompts and hand back groups with text.

Ids and seeds of the requests follow from the seed, the prompt and its place in the batch, so the
same step asked again, after a restart too, asks the same. So do the batches that groups are handed over
in while others are still sampled: which groups they hold is fixed, only when each comes is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rollouts.engines.protocol import (
    RolloutEngine,
    SampleRequest,
    SampleResult,
    StreamTicket,
    Ticket,
    WatchingEngine,
)
from rollouts.engines.recorded import Recorded
from rollouts.episodes.environment import Environments
from rollouts.episodes.ticket import EpisodesTicket, act, acts, encoded
from rollouts.errors import RunError, UserError
from rollouts.prompts import PromptEncoder, first_places
from rollouts.types import (
    Completion,
    Prompt,
    PromptIds,
    RolloutGroup,
    Sampling,
    SnapshotId,
    WeightVersion,
)

BATCHES = 8
"""Batches in which the groups of a step are handed over, at most: rewards that work in batches should
still get some, and the last one comes when sampling is over."""


Sampler = RolloutEngine | Recorded
"""Object that answers requests, or the record of what one has answered before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingRollouts:
    """Rollouts that an engine is sampling."""

    prompts: Sequence[Prompt]
    requests: Sequence[SampleRequest]
    ticket: Ticket
    encoder: PromptEncoder
    policy: SnapshotId | WeightVersion
    sampling: Sampling
    """Sampling as it was asked for, before ending tokens are added."""

    def groups(self) -> list[RolloutGroup]:
        """Wait for all groups and return them, one per prompt, in order.

        A failed completion stays in its group. Raises `RunError` when the engine answers something
        else than it was asked.
        """
        results = self.ticket()
        if len(results) != len(self.requests):
            raise _wrong(len(self.requests), len(results))
        return [self._group(index, result) for index, result in enumerate(results)]

    def arriving(self) -> Iterator[dict[int, RolloutGroup]]:
        """Yield the groups as they are finished, by the index of their prompt, in at most `BATCHES`
        batches.

        A batch holds neighbours and comes when all of them are there. An engine that does not stream
        has them all at once, in one.
        """
        if not isinstance(self.ticket, StreamTicket):
            yield dict(enumerate(self.groups()))
            return
        total = len(self.requests)
        size = max(1, -(-total // BATCHES))
        waiting: dict[int, dict[int, RolloutGroup]] = {}
        for arrivals in self.ticket.arrivals():
            for index, result in arrivals:
                batch = waiting.setdefault(index // size, {})
                batch[index] = self._group(index, result)
            complete = [n for n, b in waiting.items() if len(b) == min(size, total - n * size)]
            for number in complete:
                yield dict(sorted(waiting.pop(number).items()))

    def settle(self) -> None:
        """Wait until nothing is under way that new weights would get into the middle of."""
        if isinstance(self.ticket, EpisodesTicket):
            self.ticket.settle()

    def stop(self) -> None:
        """Give up what is under way; the results are wanted no more."""
        if isinstance(self.ticket, EpisodesTicket):
            self.ticket.stop()

    def _group(self, index: int, result: SampleResult) -> RolloutGroup:
        request = self.requests[index]
        expected, answered = (request.id, request.n), (result.id, len(result.completions))
        if expected != answered:
            raise _wrong(expected, answered)
        return RolloutGroup(
            prompt=self.prompts[index],
            prompt_ids=request.prompt_ids if result.prompt_ids is None else result.prompt_ids,
            completions_G=tuple(
                _decoded(completion, self.encoder, self.sampling.stop_texts)
                for completion in result.completions
            ),
            policy=self.policy,
            seed=request.seed,
        )


def begin(
    engine: Sampler,
    prompts: Sequence[Prompt],
    group_sizes: Sequence[int],
    encoder: PromptEncoder,
    sampling: Sampling,
    seed: int,
    policy: SnapshotId | WeightVersion,
    positions: Sequence[int] | None = None,
    environments: Environments | None = None,
) -> PendingRollouts:
    """Ask for ``group_sizes`` completions of each prompt, and wait for nothing.

    Args:
        positions: places of the prompts in the whole that they are a part of; None: they are the whole.
        environments: those that completions act in; None: every completion is one turn. A record holds what
            they did, so they are not asked again.
    """
    environments = encoder.acting_in(environments)
    complete = encoder.ended(sampling)
    indices = range(len(prompts)) if positions is None else positions
    requests = [
        _request(prompt, size, position, encoded(prompt, encoder, environments), complete, seed)
        for position, prompt, size in zip(indices, prompts, group_sizes, strict=True)
    ]
    ticket: Ticket
    if not requests:
        ticket = list
    elif isinstance(engine, Recorded) or environments is None or not acts(environments, prompts):
        ticket = engine.submit(requests)
    else:
        ticket = act(engine, prompts, requests, environments, encoder)
        if isinstance(engine, WatchingEngine):
            ticket = engine.watch(ticket, len(requests))
    return PendingRollouts(
        prompts=prompts,
        requests=requests,
        ticket=ticket,
        encoder=encoder,
        policy=policy,
        sampling=sampling,
    )


def collect(
    engine: RolloutEngine,
    prompts: Sequence[Prompt],
    group_sizes: Sequence[int],
    encoder: PromptEncoder,
    sampling: Sampling,
    seed: int,
    policy: SnapshotId | WeightVersion,
    positions: Sequence[int] | None = None,
    environments: Environments | None = None,
) -> list[RolloutGroup]:
    """Sample ``group_sizes`` completions of each prompt and return one group per prompt, in order."""
    pending = begin(
        engine, prompts, group_sizes, encoder, sampling, seed, policy, positions, environments
    )
    return pending.groups()


def check_lengths(
    prompts: Sequence[Prompt],
    encoder: PromptEncoder,
    max_tokens: int,
    max_model_len: int,
    where: str | None = None,
    environments: Environments | None = None,
) -> None:
    """Raise a `UserError` when a prompt with ``max_tokens`` after it does not fit the context.

    Args:
        environments: those that completions act in, whose tools stand in the prompts.
    """
    if environments is None:
        lengths = [len(ids) for ids in encoder.encode_all(prompts)]
    else:
        lengths = [len(encoded(prompt, encoder, environments)) for prompt in prompts]
    too_long = [i for i, length in enumerate(lengths) if length + max_tokens > max_model_len]
    if too_long:
        worst = max(too_long, key=lambda i: lengths[i])
        beginning = beginning_of(prompts[worst])
        others = first_places(
            [prompts[i].location for i in too_long if i != worst and prompts[i].location]
        )
        raise UserError(
            f"{prompts[worst].label} has {lengths[worst]} tokens and max_tokens is "
            f"{max_tokens}, more than the context of {max_model_len}; {len(too_long)} of "
            f"{len(prompts)} prompts are too long, this one is the longest"
            + (f"; so are {others}" if others else ""),
            where=where,
            cause=f"it begins {beginning!r}",
            remedy="shorten or drop these prompts, lower sampling.max_tokens, "
            "or raise rollouts.max_model_len",
        )


def beginning_of(prompt: Prompt, most: int = 60) -> str:
    """Return the first characters of a prompt, or of the last message of a chat."""
    return str(prompt.messages[-1]["content"] if prompt.messages else prompt.text)[:most]


def _request(
    prompt: Prompt, n: int, position: int, prompt_ids: PromptIds, sampling: Sampling, seed: int
) -> SampleRequest:
    if n < 1:
        raise ValueError(f"prompt {prompt.id!r}: group size {n} is not positive")
    request_id = f"{seed}/{position}/{prompt.id}"
    digest = hashlib.sha256(request_id.encode()).digest()
    return SampleRequest(
        id=request_id,
        prompt_ids=prompt_ids,
        n=n,
        sampling=sampling,
        # 31 bits: every sampler's generator takes a non-negative int32.
        seed=int.from_bytes(digest[:4], "big") >> 1,
    )


def _decoded(completion: Completion, encoder: PromptEncoder, stops: Sequence[str]) -> Completion:
    """Return the completion with its text, cut before the first stop text."""
    if completion.finish_reason == "failed":
        return completion
    if completion.episode is not None:  # Its text is that of the last turn, whose end ended it.
        return replace(completion, text=cut(completion.text, stops))
    whole = encoder.decode(completion.token_ids)
    text = cut(whole, stops)
    # An engine that knows no texts went on behind the end.
    finish = completion.finish_reason if text == whole else "stop"
    return replace(completion, text=text, finish_reason=finish)


def cut(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first occurrence of any stop text.

    >>> cut("12 apples. Question: 3", ["Question:", "\\n"])
    '12 apples. '
    """
    for stop in stops:
        if stop:
            text = text.split(stop)[0]
    return text


def _wrong(expected: object, answered: object) -> RunError:
    return RunError(
        f"the engine was asked {expected} (request, completions) and answered {answered}",
        where="rollout engine",
    )

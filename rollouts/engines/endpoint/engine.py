"""An OpenAI-compatible server as an engine: it samples, and scores where it returns logprobs of a prompt.

Prompts of a `TextEncoder` go to ``/chat/completions`` or ``/completions`` as words, others as token ids,
which servers such as vLLM take. It has no weights to load: what it serves is the server's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rollouts.engines.endpoint.client import EndpointClient, EndpointError
from rollouts.engines.endpoint.text import fields_of, text_ids
from rollouts.engines.protocol import (
    Arrivals,
    SampleRequest,
    SampleResult,
    ScoreRequest,
    SyncReport,
    WeightUpdate,
)
from rollouts.errors import RunError
from rollouts.types import Completion, FinishReason, WeightSpan

FINISHES: Mapping[str, FinishReason] = {"stop": "stop", "tool_calls": "stop", "length": "length"}
"""Endings of answers that can be used; others, such as ``content_filter``, are failures."""
SEEDS = 1 << 31
"""Number of seeds that every server takes."""

Request = TypeVar("Request")
Result = TypeVar("Result")


class NoPromptLogprobs(RunError):
    """A server that does not return the logprobs of a prompt's tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointEngine:
    """A `RolloutEngine` over one model of one server."""

    client: EndpointClient
    model: str
    """Name of the model there."""
    tokenizer: Any = None
    """Tokenizer of the model, for answers to prompts of token ids; None: there are no such prompts."""
    concurrency: int = 16
    """Requests under way at a time."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of every chat request besides the usual ones."""

    def submit(self, requests: Sequence[SampleRequest]) -> _Ticket:
        """Begin to sample when the ticket is called."""
        return _Ticket(self, tuple(requests))

    def generate(self, requests: Sequence[SampleRequest]) -> list[SampleResult]:
        """Sample every request once; one that is refused comes back as failed.

        Raises:
            UserError: the server refuses the key, or does not know the model.
        """
        return self.submit(requests)()

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        """Return each request's completion logprobs, read from the logprobs of an echoed prompt.

        Raises:
            NoPromptLogprobs: the server does not return them.
            EndpointError: a request got no answer.
        """
        scored: dict[int, tuple[float, ...]] = {}
        for fresh in self.scores(requests):
            scored |= dict(fresh)
        return [scored[index] for index in range(len(requests))]

    def scores(
        self, requests: Sequence[ScoreRequest]
    ) -> Iterator[list[tuple[int, tuple[float, ...]]]]:
        """Yield the results of `score` as they come."""

        def logprobs(request: ScoreRequest) -> tuple[float, ...]:
            ids = [*request.prompt_ids, *request.completion_ids]
            values = self._echoed(ids)["token_logprobs"][len(request.prompt_ids) : len(ids)]
            return tuple(float(value) for value in values)

        yield from self._each(logprobs, requests)

    def sync(self, update: WeightUpdate) -> SyncReport:
        """Refuse: nobody can load weights into a server of somebody else's."""
        raise ValueError("an endpoint takes no weights")

    def close(self) -> None:
        """Do nothing: connections end with their requests."""

    def arrivals(self, requests: Sequence[SampleRequest]) -> Arrivals:
        """Yield results as they come; each completion is a request: not every server gives several."""

        def sample(request: SampleRequest) -> SampleResult:
            seeds = [(request.seed + number) % SEEDS for number in range(request.n)]
            completions = tuple(self._completed(request, seed) for seed in seeds)
            return SampleResult(id=request.id, completions=completions)

        yield from self._each(sample, requests)

    def _each(
        self, ask: Callable[[Request], Result], requests: Sequence[Request]
    ) -> Iterator[list[tuple[int, Result]]]:
        """Ask many at a time; the first error ends it, and what has not begun is dropped."""
        with ThreadPoolExecutor(max_workers=self.concurrency) as pool:
            futures = {pool.submit(ask, request): n for n, request in enumerate(requests)}
            try:
                for future in as_completed(futures):
                    yield [(futures[future], future.result())]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _completed(self, request: SampleRequest, seed: int) -> Completion:
        words = fields_of(request.prompt_ids)
        chat = words is not None and "messages" in words
        prompt = {"prompt": list(request.prompt_ids)} if words is None else words
        sampling = request.sampling
        unusual = {
            "top_k": max(0, sampling.top_k),
            "min_p": max(0.0, sampling.min_p),
            "stop": list(sampling.stop_texts),
            "stop_token_ids": list(sampling.stop_token_ids),
        }
        body = {
            "model": self.model,
            **prompt,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
            **{name: value for name, value in unusual.items() if value},
        }
        try:
            if chat:
                answer = self.client.post("/chat/completions", {**body, **self.extra})
            else:
                answer = self.client.post("/completions", body)
            choice = answer["choices"][0]
            text = (choice["message"]["content"] if chat else choice["text"]) or ""
            reason = str(choice.get("finish_reason"))
        except EndpointError as error:
            return Completion.failed(f"{error.what}: {error.cause}")
        except (LookupError, TypeError, AttributeError) as error:
            return Completion.failed(f"the endpoint's answer holds no completion: {error!r}")
        if reason not in FINISHES:
            return Completion.failed(f"the endpoint ended the answer with {reason!r}")
        ids = text_ids(text)
        if words is None:
            ids = tuple(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
        return Completion(
            token_ids=ids,
            logprobs_T=(),
            text="",
            finish_reason=FINISHES[reason],
            weight_versions=(WeightSpan(self.model, 0, len(ids)),),
        )

    def tokens_of(self, ids: Sequence[int]) -> list[str]:
        """Return the texts of a prompt's tokens as the server's tokenizer has them.

        Raises:
            NoPromptLogprobs: the server does not return logprobs of a prompt.
        """
        return [str(token) for token in self._echoed(ids)["tokens"][: len(ids)]]

    def _echoed(self, ids: Sequence[int]) -> dict[str, Any]:
        """Return tokens and logprobs of a prompt, checked to be complete."""
        body = {"model": self.model, "prompt": list(ids), "max_tokens": 1, "temperature": 0.0,
                "echo": True, "logprobs": 1}  # fmt: skip
        try:
            echoed = self.client.post("/completions", body)["choices"][0]["logprobs"]
            values = echoed["token_logprobs"][: len(ids)]
            complete = len(values) == len(ids) and all(
                isinstance(v, int | float) and not isinstance(v, bool) for v in values[1:]
            )
            if complete and len(echoed["tokens"]) >= len(ids):
                return dict(echoed)
        except EndpointError as error:
            if error.cause is None or not error.cause.startswith("status 4"):
                raise
            raise NoPromptLogprobs(
                "the endpoint refuses to echo a prompt of token ids with its logprobs",
                where=self.client.base_url,
                cause=error.cause,
            ) from error
        except (LookupError, TypeError):
            pass
        raise NoPromptLogprobs(
            "the endpoint returns no logprobs of a prompt's tokens", where=self.client.base_url
        )


@dataclass(frozen=True, slots=True)
class _Ticket:
    """Requests that are sent when somebody waits for them."""

    engine: EndpointEngine
    requests: tuple[SampleRequest, ...]

    def __call__(self) -> list[SampleResult]:
        results = dict(pair for pairs in self.arrivals() for pair in pairs)
        return [results[index] for index in range(len(self.requests))]

    def arrivals(self) -> Arrivals:
        """Yield every result once, as it comes."""
        return self.engine.arrivals(self.requests)

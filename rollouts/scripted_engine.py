"""An engine for tests: it answers from a function, without a model, in microseconds.

It keeps the engine contract (order, n completions, stop and length, weight spans, versions) and can
be told to fail. It does not sample: what it says is what its script returns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from rollouts.engine import (
    SampleRequest,
    SampleResult,
    ScoreRequest,
    SyncReport,
    Ticket,
    WeightUpdate,
)
from rollouts.types import Completion, WeightSpan, WeightVersion

Script = Callable[[tuple[int, ...], int], tuple[Sequence[int], Sequence[float]]]
"""(prompt ids, seed) -> (token ids, one logprob per token); the seed differs per completion."""

Scorer = Callable[[tuple[int, ...], tuple[int, ...]], Sequence[float]]
"""(prompt ids, completion ids) -> one logprob per completion token."""


def _flat_scores(prompt_ids: tuple[int, ...], completion_ids: tuple[int, ...]) -> Sequence[float]:
    return [-1.0] * len(completion_ids)


class ScriptedEngine:
    """A `RolloutEngine` whose i-th completion of a request is ``script(prompt_ids, seed + i)``.

    Args:
        script: what to answer; cut at the request's ``max_tokens``.
        scorer: what `score` answers; -1 per token by default.
        eos_ids: a completion that ends in one of them, or in one of the request's stop tokens, or
            that is shorter than ``max_tokens``, finished with ``stop``.
    """

    def __init__(
        self, script: Script, *, scorer: Scorer = _flat_scores, eos_ids: Collection[int] = ()
    ) -> None:
        self._script, self._scorer, self._eos_ids = script, scorer, frozenset(eos_ids)
        self._refused: dict[str, str] = {}
        self._errors: list[Exception] = []
        self.version: WeightVersion = "base"
        """Name of the weights it pretends to hold."""
        self.requests: list[SampleRequest] = []
        """Every request it was asked, in order."""
        self.scored: list[ScoreRequest] = []
        """Every sequence it was asked to score, in order."""
        self.updates: list[WeightUpdate] = []
        """Every weight update it took, in order."""
        self.closed = False

    def fail_request(self, request_id: str, detail: str) -> None:
        """Answer this request with failed completions from now on."""
        self._refused[request_id] = detail

    def fail_next(self, error: Exception, times: int = 1) -> None:
        """Raise ``error`` from the next ``times`` calls of generate, score or sync."""
        self._errors.extend([error] * times)

    def submit(self, requests: Sequence[SampleRequest]) -> Ticket:
        """Sample now; there is nobody to do it meanwhile."""
        results = self.generate(requests)
        return lambda: results

    def generate(self, requests: Sequence[SampleRequest]) -> list[SampleResult]:
        """Answer every request from the script."""
        self._raise_if_told()
        self.requests.extend(requests)
        return [
            SampleResult(
                id=request.id,
                completions=tuple(self._complete(request, i) for i in range(request.n)),
            )
            for request in requests
        ]

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        """Answer every sequence from the scorer."""
        self._raise_if_told()
        self.scored.extend(requests)
        return [tuple(self._scorer(r.prompt_ids, r.completion_ids)) for r in requests]

    def sync(self, update: WeightUpdate) -> SyncReport:
        """Remember the update and take its version."""
        self._raise_if_told()
        self.updates.append(update)
        self.version = update.version
        return SyncReport(version=update.version, seconds=0.0, num_engines=1)

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True

    def _raise_if_told(self) -> None:
        if self._errors:
            raise self._errors.pop(0)

    def _complete(self, request: SampleRequest, index: int) -> Completion:
        if request.id in self._refused:
            return Completion.failed(self._refused[request.id])
        said, logprobs = self._script(request.prompt_ids, request.seed + index)
        if len(said) != len(logprobs):
            raise ValueError(f"the script gave {len(said)} tokens and {len(logprobs)} logprobs")
        limit = request.sampling.max_tokens
        token_ids = tuple(said[:limit])
        ends = self._eos_ids | set(request.sampling.stop_token_ids)
        stopped = len(said) < limit or (bool(token_ids) and token_ids[-1] in ends)
        return Completion(
            token_ids=token_ids,
            logprobs_T=tuple(logprobs[:limit]),
            text="",
            finish_reason="stop" if stopped else "length",
            weight_versions=(WeightSpan(self.version, 0, len(token_ids)),) if token_ids else (),
        )

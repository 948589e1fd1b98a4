"""An engine for tests: it answers from a function, without a model, in microseconds.

It keeps the engine contract (order, n completions, stop and length, weight spans, versions) and can
be told to fail. It does not sample: what it says is what its script returns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from rollouts.engines.protocol import (
    Arrivals,
    SampleRequest,
    SampleResult,
    ScoreRequest,
    SyncReport,
    Ticket,
    WeightLoadError,
    WeightUpdate,
)
from rollouts.engines.turns import OpenRequest, SteppedConversation
from rollouts.types import Completion, FinishReason, WeightSpan, WeightVersion

Script = Callable[[tuple[int, ...], int], tuple[Sequence[int], Sequence[float]]]
"""(prompt ids, seed) -> (token ids, one logprob per token); the seed differs per completion."""

Scorer = Callable[[tuple[int, ...], tuple[int, ...]], Sequence[float]]
"""(prompt ids, completion ids) -> one logprob per completion token."""


class ScriptedEngine:
    """A `RolloutEngine` whose i-th completion of a request is ``script(prompt_ids, seed + i)``.

    Args:
        script: what to answer; cut at the request's ``max_tokens``.
        scorer: what `score` answers; -1 per token by default.
        eos_ids: a completion that ends in one of them, or in one of the request's stop tokens, or
            that is shorter than ``max_tokens``, finished with ``stop``.
    """

    def __init__(
        self,
        script: Script,
        *,
        scorer: Scorer = lambda prompt_ids, completion_ids: [-1.0] * len(completion_ids),
        eos_ids: Collection[int] = (),
    ) -> None:
        self._script, self._scorer, self._eos_ids = script, scorer, frozenset(eos_ids)
        self._refused: dict[str, str] = {}
        self._errors: list[Exception] = []
        self._under_way: dict[OpenRequest, list[_Said]] = {}
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
        """Sample now, since no other process could do it meanwhile."""
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

    def open(self) -> SteppedConversation:
        """Begin a conversation; see `OpenEngine.open`."""
        return SteppedConversation(self)

    def add(self, opened: Sequence[OpenRequest]) -> None:
        """Let requests join those that `step` answers."""
        self._raise_if_told()
        self.requests.extend(each.request for each in opened)
        self._under_way |= {each: [_Said() for _ in range(each.request.n)] for each in opened}

    def step(self) -> None:
        """Answer everything that is under way."""
        opened, self._under_way = list(self._under_way), {}
        for each in opened:
            each.answer([self._complete(each.request, number) for number in range(each.request.n)])

    def drop(self, opened: Collection[OpenRequest]) -> None:
        """Answer these no more."""
        for each in opened:
            self._under_way.pop(each, None)

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        """Answer every sequence from the scorer."""
        self._raise_if_told()
        self.scored.extend(requests)
        return [tuple(self._scorer(r.prompt_ids, r.completion_ids)) for r in requests]

    def sync(self, update: WeightUpdate) -> SyncReport:
        """Finish what is under way, remember the update and take its version."""
        while self._under_way:
            self.step()
        return self._remember(update)

    def _remember(self, update: WeightUpdate) -> SyncReport:
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
        tokens, logprobs = self._script(request.prompt_ids, request.seed + index)
        if len(tokens) != len(logprobs):
            raise ValueError(f"the script gave {len(tokens)} tokens and {len(logprobs)} logprobs")
        limit = request.sampling.max_tokens
        token_ids = tuple(tokens[:limit])
        ends = self._eos_ids | set(request.sampling.stop_token_ids)
        stopped = len(tokens) < limit or (bool(token_ids) and token_ids[-1] in ends)
        return Completion(
            token_ids=token_ids,
            logprobs_T=tuple(logprobs[:limit]),
            text="",
            finish_reason="stop" if stopped else "length",
            weight_versions=(WeightSpan(self.version, 0, len(token_ids)),) if token_ids else (),
        )


class InFlightScriptedEngine(ScriptedEngine):
    """A `ScriptedEngine` that says one token of every completion at a time, and takes weights in between.

    The script is asked anew for every token, so what it says may follow from ``version``.

    Args:
        load: called with every update before it counts; what it raises is a load that failed.
        before_token: called with the position that is sampled next; it may wait.
    """

    def __init__(
        self,
        script: Script,
        *,
        load: Callable[[WeightUpdate], None] = lambda update: None,
        before_token: Callable[[int], None] = lambda position: None,
    ) -> None:
        super().__init__(script)
        self._load, self._before_token = load, before_token
        self._mail: deque[WeightUpdate] = deque(maxlen=1)
        self._whole = True

    def generate(self, requests: Sequence[SampleRequest]) -> list[SampleResult]:
        """Return the results of `stream`, in request order."""
        results = dict(pair for batch in self.stream(requests) for pair in batch)
        return [results[index] for index in range(len(requests))]

    def stream(self, requests: Sequence[SampleRequest]) -> Arrivals:
        """Answer every request from the script, all of them a token at a time.

        Raises:
            WeightLoadError: what was deposited could not be loaded; only a `sync` helps.
        """
        yield from SteppedConversation(self).stream(requests)

    def step(self) -> None:
        """Say the next token of everything that is under way."""
        if not self._under_way:
            return
        self._before_token(max(c.length for each in self._under_way.values() for c in each))
        self._open_mail()
        for opened, completions in list(self._under_way.items()):
            for number, completion in enumerate(completions):
                completion.go_on(self._complete(opened.request, number))
            if all(completion.finish for completion in completions):
                del self._under_way[opened]
                opened.answer([completion.completion() for completion in completions])

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        """Answer every sequence from the scorer."""
        self._open_mail()
        return super().score(requests)

    def deposit(self, update: WeightUpdate) -> SyncReport:
        """Leave weights for the next token, from any thread."""
        self._mail.append(update)
        return SyncReport(version=update.version, seconds=0.0, num_engines=1)

    def sync(self, update: WeightUpdate) -> SyncReport:
        """Load the update and take its version; what was deposited before is forgotten."""
        self._mail.clear()
        while self._whole and self._under_way:
            self.step()
        return self._take(update)

    def _take(self, update: WeightUpdate) -> SyncReport:
        self._whole = False
        self._load(update)
        self._whole = True
        return self._remember(update)

    def _open_mail(self) -> None:
        if self._mail:
            update = self._mail.popleft()
            try:
                self._take(update)
            except Exception as error:
                raise WeightLoadError(f"{update.version!r} was not loaded: {error}") from error
        if not self._whole:
            raise RuntimeError("the last weight update failed half-way; sync again")


@dataclass(kw_only=True, slots=True)
class _Said:
    """Completion of which the first tokens are sampled."""

    token_ids: list[int] = field(default_factory=list)
    logprobs_T: list[float] = field(default_factory=list)
    spans: list[WeightSpan] = field(default_factory=list)
    finish: FinishReason | None = None
    detail: str | None = None

    @property
    def length(self) -> int:
        """Number of tokens that are said."""
        return len(self.token_ids)

    def go_on(self, whole: Completion) -> None:
        """Take the next token of what the engine would say now."""
        if self.finish is not None:
            return
        position = self.length
        self.detail = whole.detail
        if position < len(whole.token_ids):
            self.token_ids.append(whole.token_ids[position])
            self.logprobs_T.append(whole.logprobs_T[position])
            (version, _, _), end = whole.weight_versions[0], position + 1
            if self.spans and self.spans[-1].version == version:
                self.spans[-1] = self.spans[-1]._replace(end=end)
            else:
                self.spans.append(WeightSpan(version, position, end))
        if position + 1 >= len(whole.token_ids):
            self.finish = whole.finish_reason

    def completion(self) -> Completion:
        """Return the finished completion."""
        assert self.finish is not None
        return Completion(
            token_ids=tuple(self.token_ids),
            logprobs_T=tuple(self.logprobs_T),
            text="",
            finish_reason=self.finish,
            weight_versions=tuple(self.spans),
            detail=self.detail,
        )

"""The one protocol behind every sampler: generate, score, sync.

`VLLMEngine` (one vLLM in one process), `EnginePool` (many of them in Ray actors) and
`ScriptedEngine` (for tests) all speak it, so whoever samples does not know how many engines there
are. Token ids go in and come out: text is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from rollouts.types import Completion, Mix, Sampling, WeightVersion


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRequest:
    """Request for ``n`` completions of one tokenized prompt. ``id`` makes a retry idempotent."""

    id: str
    prompt_ids: tuple[int, ...]
    n: int
    sampling: Sampling
    seed: int
    mix: Mix | None = None
    """Adapters of the bank that answer; None where the engine holds none."""
    follows: str | None = None
    """Id of an earlier request whose prompt and completion this prompt begins with; None: it begins anew.
    A hint for `Conversation`: the engine that answered it may have kept what it read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleResult:
    """The answer to one request; ``text`` of its completions is empty until decoded."""

    id: str
    completions: tuple[Completion, ...]
    prompt_ids: tuple[int, ...] | None = None
    """Tokens before the completions where an environment wrote some of them; None: those of the request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRequest:
    """Request for the logprobs of given completion tokens after a prompt, at temperature 1."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    mix: Mix | None = None
    """Adapters of the bank that the logprobs are taken under; see `SampleRequest.mix`."""


ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""Files of an adapter's folder, as peft names them."""


class BankAdapter(NamedTuple):
    """One adapter of a bank, as an engine loads it."""

    folder: str
    """Folder as written by peft; new weights of an adapter come in another folder."""
    increments: int
    """Low-rank increments that the adapter's rank is divided into, in equal parts."""


WeightTransfer = Literal["host", "gloo", "nccl", "ipc"]
"""Way of full weights from the learner to engines: through host memory, or straight from its ranks."""

SendWeights = Callable[[Sequence[Any], int], None]
"""Sends the learner's weights to engines, which are given as Ray actors and the number of workers of each.
It returns when all of them serve the weights, and raises `WeightSendError` where some do not."""


class WeightSendError(RuntimeError):
    """Weights that were sent straight to engines and did not reach all of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightUpdate:
    """New weights for an engine: all tensors of a full model, a folder with an adapter, or a bank.

    ``tensors`` maps Hugging Face parameter names to host arrays (bf16 as a torch tensor); ``adapter``
    is a folder as written by peft, with a name no earlier version used. ``bank`` names adapters that are
    held side by side on the engine's base: each request says by its ``mix`` which of them answer it. With
    none of them, and nothing to send, it is the engine's base.
    """

    version: WeightVersion
    tensors: Mapping[str, Any] | None = None
    adapter: str | None = None
    bank: Mapping[str, BankAdapter] | None = None
    send: SendWeights | None = None
    """Way of weights that stay with the learner until they are sent; None: they are above."""


def check_update(update: WeightUpdate, *, takes_adapters: bool) -> None:
    """Refuse an update of several kinds, and one that the engine was not started for.

    Raises:
        ValueError: the engine cannot take it; nothing was changed.
    """
    kinds = [name for name in ("tensors", "adapter", "bank") if getattr(update, name) is not None]
    if len(kinds) > 1:
        raise ValueError(f"a weight update holds {kinds[0]} or {kinds[1]}, not both")
    if kinds in (["adapter"], ["bank"]) and not takes_adapters:
        raise ValueError("this engine was started for full weights and takes no adapters")
    if kinds == ["tensors"] and takes_adapters:
        raise ValueError("this engine was started for adapters and takes no full weights")


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncReport:
    """Version, seconds and engines of one weight sync, for the metrics."""

    version: WeightVersion
    seconds: float
    num_engines: int
    load_s: float = 0.0
    """Seconds, of ``seconds``, that the slowest engine took to load weights it had; 0 if not known."""


class WeightLoadError(RuntimeError):
    """Weights that lay ready for an engine could not be loaded; what it holds now has no name."""


Ticket = Callable[[], list[SampleResult]]
"""Handle of samples under way: a call waits for them, and a second call returns them again."""

Arrivals = Iterator[list[tuple[int, SampleResult]]]
"""Results as they come: those that are ready together, each with the index of its request."""


@runtime_checkable
class StreamTicket(Protocol):
    """A `Ticket` of an engine that hands over what is finished while it works on the rest."""

    def __call__(self) -> list[SampleResult]:
        """Wait for all of them; results in request order."""
        ...

    def arrivals(self) -> Arrivals:
        """Yield every result once, as it comes."""
        ...


@runtime_checkable
class StreamingEngine(Protocol):
    """Engine in its own process that reports finished requests while it works on others."""

    def stream(self, requests: Sequence[SampleRequest]) -> Arrivals:
        """Sample every request once. Nothing else may be asked of the engine before the last result."""
        ...


@runtime_checkable
class StreamScoringEngine(Protocol):
    """An engine that hands over logprobs while it works on the rest."""

    def scores(
        self, requests: Sequence[ScoreRequest]
    ) -> Iterator[list[tuple[int, tuple[float, ...]]]]:
        """Yield the results of `RolloutEngine.score` as they come, each with its request's index."""
        ...


@runtime_checkable
class InFlightEngine(Protocol):
    """An engine that takes new weights in the middle of its completions."""

    def deposit(self, update: WeightUpdate) -> SyncReport:
        """Leave weights that are loaded before the next token is sampled, whatever is running.

        Completions under way go on under them, with their KV cache computed again; `Completion.
        weight_versions` tells which tokens are whose. The last of several deposits counts.
        """
        ...


class Conversation(Protocol):
    """Requests of one caller, made while earlier ones are still being sampled.

    Ids are unique among the requests under way. What is sampled follows from a request's seed, whatever
    runs beside it.
    """

    def ask(self, requests: Sequence[SampleRequest]) -> None:
        """Hand requests over and return at once; they join what is being sampled."""
        ...

    def arrivals(self, timeout_s: float) -> list[SampleResult]:
        """Return what is finished, every result once; wait at most ``timeout_s`` for the first of them.

        Returns an empty list when the time is over, and at once when nothing is under way. An engine in
        this process samples in here: at least one token of everything, however short the time.
        """
        ...

    def close(self) -> None:
        """Forget what is not finished; safe to call twice."""
        ...


@runtime_checkable
class OpenEngine(Protocol):
    """An engine that takes requests while it samples; `rollouts.engines.turns` asks others in waves."""

    def open(self) -> Conversation:
        """Begin a conversation; several may be open, and other calls may be made in between.

        A `RolloutEngine.sync` finishes the requests under way before it loads; weights that come by
        `InFlightEngine.deposit` are loaded before their next token. Later requests get the new weights.
        """
        ...


@runtime_checkable
class TransferEngine(Protocol):
    """An engine that takes weights straight from the learner's ranks."""

    def transfer(self, verb: str, info: Any, version: WeightVersion) -> None:
        """Do a verb of vLLM's weight transfer (``init``, ``start``, ``update``, ``finish``) or ``abandon``.

        Args:
            version: name of the weights that are served after ``finish``.
        """
        ...


@runtime_checkable
class WatchingEngine(Protocol):
    """An engine that counts results which its callers make of several requests each."""

    def watch(self, ticket: Ticket, results: int) -> Ticket:
        """Return a ticket of which the results are counted while they are waited for."""
        ...


@runtime_checkable
class ReplacingEngine(Protocol):
    """Group of engines that replaces those that fail."""

    @property
    def replaced(self) -> Sequence[str]:
        """One reason for each replaced engine, in the order of the replacements."""
        ...


@runtime_checkable
class KnownEngine(Protocol):
    """An engine that can say by what it computes."""

    def about(self) -> Mapping[str, str]:
        """Return the version of ``vllm`` and the kind of ``device``; empty if that is not known now."""
        ...


class RolloutEngine(Protocol):
    """Sampling and scoring under one known weight version."""

    def submit(self, requests: Sequence[SampleRequest]) -> Ticket:
        """Begin to sample and return at once, where the engine can; any other call finishes this first."""
        ...

    def generate(self, requests: Sequence[SampleRequest]) -> list[SampleResult]:
        """Sample every request once; results in request order."""
        ...

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        """Return the logprobs (nats) of each request's completion tokens, in request order."""
        ...

    def sync(self, update: WeightUpdate) -> SyncReport:
        """Load weights, drop every cache that depends on the old ones, stamp the version."""
        ...

    def close(self) -> None:
        """Free the engine and its processes; safe to call twice."""
        ...

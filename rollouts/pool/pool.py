"""Many engines as one: balances requests, replaces engines that die, keeps all on one version.

Every engine is a Ray actor. What a caller may rely on:

* each request is answered exactly once, in order, however many engines die on the way;
* an engine works only with the current weights: a replacement loads and reports them first;
* every wait has a deadline, and an engine that misses it is killed and replaced.

Ray must be running; the pool starts no cluster. It does not know what tokens mean, and an engine
that is alive and answers wrongly is not its business (the parity probe after a sync is).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rollouts.engines.backend import EngineSpec
from rollouts.engines.protocol import (
    Arrivals,
    Conversation,
    SampleRequest,
    SampleResult,
    ScoreRequest,
    SendWeights,
    StreamTicket,
    SyncReport,
    WeightSendError,
    WeightUpdate,
)
from rollouts.engines.stored_tensor import read_stored
from rollouts.engines.transfer.host import to_host
from rollouts.engines.turns import Waves
from rollouts.errors import RunError
from rollouts.machine.fair_lock import FairLock
from rollouts.machine.silence import SILENCE_S
from rollouts.pool.balance import num_chunks, split
from rollouts.pool.conversation import PoolConversation
from rollouts.pool.dispatch import Dispatch, DispatchFailure, Verb
from rollouts.pool.engine_slot import MAIL, EngineFactory, EngineSlot, Launch
from rollouts.pool.exchange import Exchange
from rollouts.pool.fleet import Fleet, Note, reason_of, refusal
from rollouts.pool.placement import Bundle, bundles_of, on_one_machine
from rollouts.types import Completion, WeightVersion

Answers = list[tuple[int, Any]]
"""Answers that are ready together, each with the index of its item."""

ABANDON_S = 30.0
"""Seconds in which an engine that lives gives up weights that do not come."""

TOKENS_PER_CALL = 4096
"""Tokens scored in one call of `scores`: two of vLLM's steps, so that batches stay full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolMetrics:
    """Counters since the pool was made."""

    restarts: int
    """Engines that were replaced."""
    failed_requests: int
    """Requests that were given up and answered as failed."""
    tokens: tuple[int, ...]
    """Tokens sampled, per engine."""


class EnginePool:
    """A `RolloutEngine` over ``num_engines`` actors.

    The constructor returns at once while the engines start behind it, so that a caller can load its
    own libraries meanwhile; every other call waits for them.

    Args:
        config: the engines, all alike.
        num_engines: how many actors.
        bundle: what each device of an engine takes of the cluster; None: one CPU, and one GPU where
            there are any.
        start_deadline_s: seconds an engine may take to start and load its weights.
        deadline_s: seconds one call to one engine may take.
        max_restarts: how often in a row one engine may fail before the pool gives up.
        in_flight: engines take weights while they sample, see `deposit`.
        note: told what is waited for while the engines start, and which engine is silent.
        silence_s: seconds without an answer after which an engine is named; half of ``deadline_s`` if that
            is shorter.
        engine_factory: builds the engine inside its actor instead of ``config``; for tests.

    Raises:
        UserError: the model folder cannot be served.
        RunError: Ray is not running; from any call: an engine failed for good.
    """

    def __init__(
        self,
        config: EngineSpec,
        *,
        num_engines: int = 1,
        bundle: Bundle | None = None,
        start_deadline_s: float = 180.0,
        deadline_s: float = 600.0,
        max_restarts: int = 3,
        in_flight: bool = False,
        note: Note = lambda _: None,
        silence_s: float = SILENCE_S,
        engine_factory: EngineFactory | None = None,
    ) -> None:
        import ray

        if num_engines < 1:
            raise ValueError(f"num_engines is {num_engines}, a pool needs at least one")
        if not ray.is_initialized():
            raise RunError("Ray is not running", where="engine pool", remedy="call ray.init first")
        self._config, self._deadline_s = config, deadline_s
        self._unsynced: str | None = None
        self._failed = 0
        self._open: list[Dispatch] = []
        self._in_flight = in_flight
        launch = _launch(config, engine_factory, bundle, start_deadline_s)
        silence_s = min(silence_s, deadline_s / 2)
        self._fleet = Fleet(launch, num_engines, max_restarts, note, silence_s)
        self.lock = FairLock()
        """Held by whoever changes what the engines do; a conversation waits for answers without it."""
        self.exchange = Exchange(
            self._fleet, max_num_seqs=config.max_num_seqs, deadline_s=deadline_s
        )
        """Requests of the conversations."""

    @property
    def metrics(self) -> PoolMetrics:
        """Counters since the pool was made."""
        return PoolMetrics(
            restarts=len(self._fleet.replaced),
            failed_requests=self._failed + self.exchange.num_failed,
            tokens=tuple(slot.tokens for slot in self._fleet.slots),
        )

    @property
    def replaced(self) -> tuple[str, ...]:
        """One reason for each replaced engine, in the order of the replacements."""
        return tuple(self._fleet.replaced)

    def about(self) -> Mapping[str, str]:
        """Return version of vLLM and kind of device of an engine; all are alike. Empty if none answers."""
        import ray

        self._fleet.wait_ready()
        self._fleet.wait_any()
        slot = next(slot for slot in self._fleet.slots if not slot.starting)
        try:
            return dict(ray.get(slot.actor.about.remote(), timeout=self._deadline_s))
        except ray.exceptions.RayError:  # Whoever asks it next replaces it.
            return {}

    @property
    def pids(self) -> tuple[int | None, ...]:
        """Process id per engine; None while it starts."""
        return tuple(slot.pid for slot in self._fleet.slots)

    def wait_ready(self) -> None:
        """Block until every engine has started.

        Raises:
            UserError: an engine refused its configuration.
            RunError: an engine did not start in time, or at all.
        """
        self._fleet.wait_ready()

    def generate(self, requests: Sequence[SampleRequest]) -> list[SampleResult]:
        """Sample every request once, spread over the engines; results in request order."""
        return self.submit(requests)()

    def submit(self, requests: Sequence[SampleRequest]) -> StreamTicket:
        """Begin to sample; the engines work on while the caller does something else.

        Several may be under way: what finds no idle engine begins when an earlier one is collected.
        Scoring and syncing finish them all first. Requests of conversations that the engines have are
        waited for.
        """
        import ray

        sequences = sum(request.n for request in requests)
        costs = [request.n * request.sampling.max_tokens for request in requests]
        # Ray Client hands on no streams.
        verb: Verb = "generate" if ray.util.client.ray.is_connected() else "stream"
        with self.lock:
            dispatch = self._dispatch(verb, requests, costs, sequences)
            self._settle()
            self._open.append(dispatch)
            dispatch.send()
        return _Ticket(pool=self, requests=requests, dispatch=dispatch)

    def open(self) -> Conversation:
        """Begin a conversation: requests join engines that sample already; see `OpenEngine.open`."""
        import ray

        # Ray Client hands on no streams.
        return Waves(self) if ray.util.client.ray.is_connected() else PoolConversation(self)

    def exchange_turns(self) -> None:
        """Take in what has come for conversations, and send what waits; the caller has the lock."""
        self._fleet.wait_ready()
        try:
            self.exchange.receive()
            if self.exchange.waits:
                self._check_synced()
                self._finish_tickets()
                self.exchange.send()
        except BaseException as error:
            self.exchange.abandon(error)
            raise

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        """Return the logprobs of given completions, spread over the engines, in request order.

        Raises:
            RunError: a sequence could not be scored.
        """
        costs = _tokens_of(requests)
        with self.lock:
            self._finish_all()
            answers = self._dispatch("score", requests, costs, len(requests)).run()
        _check_scored(answers)
        return answers

    def scores(
        self, requests: Sequence[ScoreRequest]
    ) -> Iterator[list[tuple[int, tuple[float, ...]]]]:
        """Yield the results of `score` as they come, a few thousand tokens at a time.

        Raises:
            RunError: a sequence could not be scored.
        """
        costs = _tokens_of(requests)
        calls = -(-sum(costs) // TOKENS_PER_CALL)
        with self.lock:
            self._finish_all()
            dispatch = self._dispatch("score", requests, costs, len(requests), at_least=calls)
        for fresh in self._in_turns(dispatch.arriving()):
            _check_scored(answer for _, answer in fresh)
            yield fresh

    def sync(self, update: WeightUpdate) -> SyncReport:
        """Hand the update to all engines at once, through one copy in the object store."""
        with self.lock:
            return self._sync(update)

    def _sync(self, update: WeightUpdate) -> SyncReport:

        self._finish_all()
        start = time.perf_counter()
        self._fleet.wait_ready()
        self._fleet.wait_any()
        self._unsynced = f"the sync of {update.version!r} did not finish"
        if update.send is not None:
            return self._receive(update.version, update.send, start)
        self._put(update)
        refs: dict[Any, EngineSlot] = {}
        for slot in self._fleet.slots:
            ref = slot.actor.sync.remote(self._fleet.weights)
            if slot.starting:
                slot.starting.append(ref)
            else:
                refs[ref] = slot
        done, late = self._wait_for(refs, f"the load of {update.version!r}")
        for ref in late:
            self._fleet.replace(refs[ref], f"its sync took longer than {self._deadline_s:g} s")
        reports = [self._checked_sync(ref, refs[ref]) for ref in done]
        load_s = [report.load_s for report in reports if report is not None]
        self._unsynced = None
        return SyncReport(
            version=update.version,
            seconds=time.perf_counter() - start,
            num_engines=len(load_s),
            load_s=max(load_s, default=0.0),
        )

    def _receive(self, version: WeightVersion, send: SendWeights, start: float) -> SyncReport:
        """Let the learner send all engines its weights; what dies on the way is replaced, and all get them
        again."""
        fleet = self._fleet
        fleet.weights, fleet.version, fleet.is_sent = None, version, False
        while True:
            fleet.wait_all()
            try:
                send([slot.actor for slot in fleet.slots], self._config.division.num_devices)
                break
            except WeightSendError as error:
                if not self._replace_broken():
                    raise RunError(
                        f"the engines were not sent the weights {version!r}",
                        where="engine pool",
                        cause=str(error),
                        remedy="look at the network between learner and engines, or set "
                        "rollouts.weight_transfer: host",
                    ) from error
        fleet.is_sent, self._unsynced = True, None
        for slot in fleet.slots:
            slot.is_behind = False
        seconds = time.perf_counter() - start
        return SyncReport(version=version, seconds=seconds, num_engines=len(fleet.slots))

    def _replace_broken(self) -> bool:
        """Replace the engines that do not answer after a transfer has failed; False if all do."""
        import ray

        refs = {slot.actor.transfer.remote("abandon", None, ""): slot for slot in self._fleet.slots}
        _, late = ray.wait(list(refs), num_returns=len(refs), timeout=ABANDON_S)
        broken = [(refs[ref], f"no answer within {ABANDON_S:g} s") for ref in late]
        for ref, slot in refs.items():
            try:
                ray.get(ref, timeout=0)
            except ray.exceptions.GetTimeoutError:
                continue
            except ray.exceptions.RayError as error:
                broken.append((slot, reason_of(error)))
        for slot, reason in broken:
            self._fleet.replace(slot, reason)
        return bool(broken)

    def deposit(self, update: WeightUpdate) -> SyncReport:
        """Hand the update to engines that sample; each loads it before its next token.

        Waits until it lies at every engine, not until it is loaded: a later `sync` proves what they hold.
        An engine that does not take it is ended, and whoever waits for its answers replaces it.

        Raises:
            ValueError: the pool was not made with ``in_flight``.
        """
        if not self._in_flight:
            raise ValueError(
                "a pool takes weights while it samples only if made with in_flight=True"
            )
        with self.lock:
            return self._deposit(update)

    def _deposit(self, update: WeightUpdate) -> SyncReport:

        start = time.perf_counter()
        self._fleet.wait_ready()
        self._unsynced = f"not every engine took {update.version!r}"
        self._put(update)
        refs: dict[Any, EngineSlot] = {}
        for slot in self._fleet.slots:
            if slot.starting:
                slot.starting.append(slot.actor.sync.remote(self._fleet.weights))
            else:
                call = slot.actor.deposit.options(concurrency_group=MAIL)
                refs[call.remote(self._fleet.weights)] = slot
        on_time, late = self._wait_for(refs, f"the receipt of {update.version!r}")
        num_engines = sum(map(_has_taken, on_time))
        for ref in late:
            refs[ref].end_actor()
        self._unsynced = None
        seconds = time.perf_counter() - start
        return SyncReport(version=update.version, seconds=seconds, num_engines=num_engines)

    def close(self) -> None:
        """Kill every engine; safe to call twice and after Ray has gone."""
        self._fleet.close()

    def _put(self, update: WeightUpdate) -> None:
        """Make the update what engines should hold: those that start from now on load it."""
        import ray

        if update.tensors is not None:
            tensors = update.tensors if on_one_machine() else read_stored(update.tensors)
            update = replace(update, tensors=to_host(tensors))
        # The version before goes first: the object store never has to hold two of a large model.
        self._fleet.weights, self._fleet.version = None, update.version
        self._fleet.weights, self._fleet.is_sent = ray.put(update), False
        for slot in self._fleet.slots:
            slot.is_behind = False

    def _wait_for(
        self, refs: Mapping[Any, EngineSlot], owed: str
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        """Wait for one call of each engine; return the calls that ended, and those that are late."""
        import ray

        until = time.monotonic() + self._deadline_s
        for slot in refs.values():
            slot.silence.restart()
        waiting: Sequence[Any] = list(refs)
        while True:
            left_s = until - time.monotonic()
            pause_s = min([left_s, *(refs[ref].silence.left_s for ref in waiting)])
            _, waiting = ray.wait(list(refs), num_returns=len(refs), timeout=max(0.0, pause_s))
            if not waiting or left_s <= 0:
                return [ref for ref in refs if ref not in set(waiting)], waiting
            for ref in waiting:
                self._fleet.tell_silent(refs[ref], owed, self._deadline_s)

    def _checked_sync(self, ref: Any, slot: EngineSlot) -> SyncReport | None:
        """Return the report of an engine that has the new version; None if it died and is replaced."""
        import ray

        try:
            report: SyncReport = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            # All engines got the same update: what one refuses, its replacement refuses too.
            raise refusal(error, f"engine {slot.index} could not load the weights") from error
        except ray.exceptions.RayError as error:
            self._fleet.replace(slot, reason_of(error))
            return None
        if report.version != self._fleet.version:
            self._fleet.replace(
                slot, f"it holds {report.version!r} after the sync of {self._fleet.version!r}"
            )
            return None
        return report

    def _dispatch(
        self,
        verb: Verb,
        items: Sequence[Any],
        costs: list[int],
        sequences: int,
        *,
        at_least: int = 0,
    ) -> Dispatch:
        """Cut items into calls and dispatch them; ``at_least`` is the least number of calls."""
        self._fleet.wait_ready()
        self._check_synced()
        calls = num_chunks(sequences, len(self._fleet.slots), self._config.max_num_seqs)
        chunks = split(costs, max(calls, at_least))
        return Dispatch(self._fleet, verb, items, chunks, deadline_s=self._deadline_s)

    def _check_synced(self) -> None:
        if self._unsynced is not None:
            raise RunError(
                "the engines may hold different weights",
                where="engine pool",
                cause=self._unsynced,
                remedy="sync again before sampling",
            )

    def _finish(self, dispatch: Dispatch) -> list[Any]:
        """Wait for a call's answers, then let the next one under way have the engines."""
        with self.lock:
            for _ in self._arriving(dispatch):
                pass
            return dispatch.run()

    def _in_turns(self, answers: Iterator[Answers]) -> Iterator[Answers]:
        """Yield what comes, and have the lock only while something is waited for."""
        while True:
            with self.lock:
                fresh = next(answers, None)
            if fresh is None:
                return
            yield fresh

    def _arriving(self, dispatch: Dispatch) -> Iterator[list[tuple[int, Any]]]:
        """Yield the answers of `_finish` as they come.

        What was asked earlier is finished first: it may hold the engines, and only its own wait frees them.
        """
        if dispatch in self._open:
            for earlier in self._open[: self._open.index(dispatch)]:
                self._finish(earlier)
        failed = 0
        try:
            for answers in dispatch.arriving():
                failed += sum(isinstance(answer, DispatchFailure) for _, answer in answers)
                yield answers
        except BaseException:
            for other in self._open:
                other.leave()
            self._open.clear()
            raise
        if dispatch in self._open:
            self._open.remove(dispatch)
            self._failed += failed
            for waiting in self._open:
                waiting.send()

    def _finish_all(self) -> None:
        self._finish_tickets()
        self._settle()

    def _finish_tickets(self) -> None:
        while self._open:
            self._finish(self._open[0])

    def _settle(self) -> None:
        """Wait until the engines have answered what conversations sent them; send nothing more."""
        import ray

        try:
            while not self.exchange.is_quiet:
                refs, pause_s = list(self.exchange.refs()), self.exchange.seconds_left()
                ray.wait(refs, num_returns=1, timeout=pause_s)
                self.exchange.receive()
        except BaseException as error:
            self.exchange.abandon(error)
            raise


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ticket:
    """Samples under way in a pool."""

    pool: EnginePool
    requests: Sequence[SampleRequest]
    dispatch: Dispatch

    def __call__(self) -> list[SampleResult]:
        answers = self.pool._finish(self.dispatch)
        return [_result(*pair) for pair in zip(self.requests, answers, strict=True)]

    def arrivals(self) -> Arrivals:
        for answers in self.pool._in_turns(self.pool._arriving(self.dispatch)):
            yield [(index, _result(self.requests[index], answer)) for index, answer in answers]


def _tokens_of(requests: Sequence[ScoreRequest]) -> list[int]:
    return [len(r.prompt_ids) + len(r.completion_ids) for r in requests]


def _check_scored(answers: Iterable[Any]) -> None:
    """Raise the error of the first answer that failed."""
    for answer in answers:
        if isinstance(answer, DispatchFailure):
            raise RunError(
                "a sequence could not be scored", where="engine pool", cause=answer.detail
            )


def _launch(
    config: EngineSpec,
    factory: EngineFactory | None,
    bundle: Bundle | None,
    start_deadline_s: float,
) -> Launch:
    import ray

    device = config.device
    if device == "auto" and bundle is not None:
        device = "cuda" if "GPU" in bundle else "cpu"
    elif device == "auto":
        device = "cuda" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"
    if bundle is None:
        bundle = {"CPU": 1, "GPU": 1} if device == "cuda" else {"CPU": 1}
    if factory is None:
        if Path(config.model).is_dir():
            config.check_folder(device)
        factory = replace(config, device=device).start
    return Launch(
        factory=factory,
        environment=config.environment(device),
        bundles=bundles_of(config.division, bundle),
        start_deadline_s=start_deadline_s,
    )


def _has_taken(ref: Any) -> bool:
    """Return True if an engine took a deposit, and False if it died: its running call reports that as
    well."""
    import ray

    try:
        ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        raise refusal(error, "an engine could not take the weights") from error
    except ray.exceptions.RayError:
        return False
    return True


def _result(request: SampleRequest, answer: Any) -> SampleResult:
    if isinstance(answer, DispatchFailure):
        failed = (Completion.failed(answer.detail),) * request.n
        return SampleResult(id=request.id, completions=failed)
    assert isinstance(answer, SampleResult)
    return answer

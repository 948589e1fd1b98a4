"""Conversations with engines in this process: turns that join others, weights that come between and within.

A conversation here goes on as an episode does: the next prompt is the last one, what was sampled, and two
tokens that nobody sampled.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from rollouts.engines.decoding.batch import CachedBatch
from rollouts.engines.protocol import (
    Conversation,
    OpenEngine,
    SampleRequest,
    SampleResult,
    ScoreRequest,
    WeightLoadError,
    WeightUpdate,
)
from rollouts.engines.scripted import InFlightScriptedEngine, ScriptedEngine
from rollouts.engines.transformers import TransformersConfig, TransformersEngine
from rollouts.engines.turns import SteppedConversation, Waves, conversation_with
from rollouts.machine.fair_lock import FairLock
from rollouts.types import Completion, Sampling, WeightSpan
from tests.unit.model_kinds import save_folder

TOLERANCE = 1e-4
"""Largest difference of a logprob, in nats; stale weights differ by about 1."""
CONTEXT, TURNS = 64, 3
OBSERVED = (7, 8)
"""Tokens between two turns."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A model that is decoded with a cache, and one that is read anew for every token."""
    root = tmp_path_factory.mktemp("models")
    return {kind: save_folder(root / kind, kind) for kind in ("llama", "rwkv")}


def engine_of(folder: Path, **options: Any) -> TransformersEngine:
    options = {"device": "cpu", "max_model_len": CONTEXT, "kv_cache_mb": 16, **options}
    return TransformersConfig(model=str(folder), **options).start()


def model_of(folder: Path, version: str) -> Any:
    """Return the model under the weights of a version; ``base`` or ``r/<seed>``."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if version != "base":
        generator = torch.Generator().manual_seed(int(version.removeprefix("r/")))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def weights(folder: Path, version: str) -> WeightUpdate:
    model = model_of(folder, version)
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    return WeightUpdate(version=version, tensors=tensors)


@dataclass
class Talk:
    """One conversation's turns so far."""

    number: int
    rows: list[tuple[tuple[int, ...], Completion]] = field(default_factory=list)
    """Prompt and completion of every turn."""

    def next_request(self) -> SampleRequest:
        turn = len(self.rows)
        prompt_ids: tuple[int, ...] = tuple(range(3, 5 + self.number))
        if self.rows:
            before, completion = self.rows[-1]
            prompt_ids = (*before, *completion.token_ids, *OBSERVED)
        return SampleRequest(
            id=f"{self.number}/{turn}",
            prompt_ids=prompt_ids,
            n=1,
            sampling=Sampling(max_tokens=3 + 2 * (self.number % 3), temperature=1.0),
            seed=100 * self.number + turn,
            follows=f"{self.number}/{turn - 1}" if turn else None,
        )


def converse(
    conversation: Conversation, talks: Iterable[Talk], between: Callable[[], object] = lambda: None
) -> None:
    """Take every talk over its turns; ``between`` is called after each arrival."""
    open_requests = {}
    for talk in talks:
        request = talk.next_request()
        open_requests[request.id] = talk, request
    conversation.ask([request for _, request in open_requests.values()])
    while open_requests:
        for result in conversation.arrivals(0.0):
            talk, request = open_requests.pop(result.id)
            (completion,) = result.completions
            assert completion.finish_reason in ("stop", "length"), completion.detail
            talk.rows.append((request.prompt_ids, completion))
            if len(talk.rows) < TURNS:
                request = talk.next_request()
                open_requests[request.id] = talk, request
                conversation.ask([request])
            between()
    assert conversation.arrivals(0.0) == []


def check_tokens(talks: Iterable[Talk], folder: Path) -> set[str]:
    """Compare every sampled token's logprob with the model of its version; return the versions."""
    models: dict[str, Any] = {}
    for prompt_ids, completion in (row for talk in talks for row in talk.rows):
        ids = torch.tensor([[*prompt_ids, *completion.token_ids]])
        ends = [0, *(end for _, _, end in completion.weight_versions)]
        assert [start for _, start, _ in completion.weight_versions] == ends[:-1]
        assert ends[-1] == len(completion.token_ids) == len(completion.logprobs_T)
        for version, start, end in completion.weight_versions:
            model = models.setdefault(version, model_of(folder, version))
            with torch.no_grad():
                logprobs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
            for t in range(start, end):
                position = len(prompt_ids) + t
                expected = logprobs[position - 1, ids[0, position]].item()
                assert completion.logprobs_T[t] == pytest.approx(expected, abs=TOLERANCE)
    return set(models)


@pytest.mark.parametrize(("kind", "limits"), [
    ("llama", {}), ("llama", {"max_num_seqs": 2}), ("rwkv", {}),
])  # fmt: skip
def test_turns_that_join_others_are_those_of_a_request_alone(
    folders: Mapping[str, Path], kind: str, limits: dict[str, int]
) -> None:
    engine = engine_of(folders[kind], **limits)
    assert isinstance(engine, OpenEngine)
    talks = [Talk(number) for number in range(5)]
    converse(engine.open(), talks)
    assert check_tokens(talks, folders[kind]) == {"base"}
    for talk in talks:
        again = Talk(talk.number)
        for prompt_ids, completion in talk.rows:
            request = again.next_request()
            assert request.prompt_ids == prompt_ids
            (result,) = engine.generate([request])
            assert result.completions[0].token_ids == completion.token_ids
            score = ScoreRequest(prompt_ids=prompt_ids, completion_ids=completion.token_ids)
            assert engine.score([score])[0] == pytest.approx(completion.logprobs_T, abs=TOLERANCE)
            again.rows.append((prompt_ids, completion))


@pytest.mark.parametrize("verb", ["sync", "deposit"])
@pytest.mark.parametrize("kind", ["llama", "rwkv"])
def test_every_token_of_every_turn_knows_the_weights_that_sampled_it(
    folders: Mapping[str, Path], kind: str, verb: str
) -> None:
    """A sync ends turns under way with the old weights; a deposit changes them in the middle."""
    engine, arrivals = engine_of(folders[kind]), count()

    def between() -> None:
        if (number := next(arrivals)) in (2, 5):
            getattr(engine, verb)(weights(folders[kind], f"r/{number}"))

    talks = [Talk(number) for number in range(5)]
    converse(engine.open(), talks, between)
    assert check_tokens(talks, folders[kind]) == {"base", "r/2", "r/5"}
    completions = [completion for talk in talks for _, completion in talk.rows]
    mixed = [c for c in completions if len(c.weight_versions) > 1]
    assert bool(mixed) == (verb == "deposit")


def test_other_calls_share_the_engine_with_a_conversation(folders: Mapping[str, Path]) -> None:
    engine = engine_of(folders["llama"])
    first, second = engine.open(), engine.open()
    (request, other) = Talk(0).next_request(), Talk(4).next_request()
    (alone,), (other_alone,) = engine.generate([request]), engine.generate([other])
    first.ask([request])
    assert first.arrivals(0.0) == []
    second.ask([other])
    (between,) = engine.generate([Talk(1).next_request()])
    engine.score([ScoreRequest(prompt_ids=(3,), completion_ids=(4, 5))])
    assert between.id == "1/0"
    assert wait_for(second) == [SameTokens(other_alone)]
    assert wait_for(first) == [SameTokens(alone)]


def test_a_single_turn_does_not_keep_others_out_of_the_batch(
    folders: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, rows, step = engine_of(folders["llama"]), [], CachedBatch.step

    def counted(batch: CachedBatch, tokens: Any) -> Any:
        rows.append(len(tokens))
        return step(batch, tokens)

    monkeypatch.setattr(CachedBatch, "step", counted)
    conversation = engine.open()
    requests = [replace(Talk(number).next_request(), n=2) for number in range(4)]
    conversation.ask(requests[:1])
    conversation.arrivals(0.0)
    conversation.ask(requests[1:])
    answered: set[str] = set()
    while len(answered) < 4:
        answered |= {result.id for result in conversation.arrivals(0.0)}
    assert max(rows) == 8


def test_what_is_closed_or_refused_leaves_the_others_alone(folders: Mapping[str, Path]) -> None:
    engine = engine_of(folders["llama"])
    kept, closed = engine.open(), engine.open()
    (alone,) = engine.generate([Talk(2).next_request()])
    closed.ask([Talk(number).next_request() for number in (0, 1)])
    kept.ask([Talk(2).next_request()])
    closed.arrivals(0.0)
    closed.close()
    closed.close()
    assert closed.arrivals(1.0) == []
    assert wait_for(kept) == [SameTokens(alone)]
    too_long = Talk(0).next_request()
    kept.ask(
        [
            SampleRequest(
                id="long", prompt_ids=(3,) * CONTEXT, n=2, sampling=too_long.sampling, seed=0
            )
        ]
    )
    (refused,) = kept.arrivals(0.0)
    assert [c.finish_reason for c in refused.completions] == ["failed", "failed"]


def test_weights_that_do_not_load_end_the_wait_and_a_sync_lets_turns_go_on(
    folders: Mapping[str, Path],
) -> None:
    folder = folders["llama"]
    engine = engine_of(folder)
    conversation = engine.open()
    conversation.ask([Talk(2).next_request()])
    conversation.arrivals(0.0)
    engine.deposit(WeightUpdate(version="r/1", tensors={}))
    with pytest.raises(WeightLoadError, match="'r/1' was not loaded"):
        conversation.arrivals(0.0)
    engine.sync(weights(folder, "r/2"))
    talk = Talk(2)
    (result,) = wait_for(conversation)
    talk.rows.append((talk.next_request().prompt_ids, result.completions[0]))
    assert check_tokens([talk], folder) == {"base", "r/2"}


def wait_for(conversation: Conversation) -> list[SampleResult]:
    """Wait until something arrives."""
    for _ in range(100):
        if results := conversation.arrivals(0.0):
            return results
    raise AssertionError("nothing arrived")


@dataclass(frozen=True)
class SameTokens:
    """Equal to a result of the same tokens, and of logprobs that differ by rounding alone."""

    expected: SampleResult

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, SampleResult)
        pairs = zip(self.expected.completions, other.completions, strict=True)
        return self.expected.id == other.id and all(
            a.token_ids == b.token_ids
            and a.logprobs_T == pytest.approx(b.logprobs_T, abs=TOLERANCE)
            for a, b in pairs
        )


def say(prompt_ids: tuple[int, ...], seed: int) -> tuple[list[int], list[float]]:
    """Say the length of the prompt, the seed and a nine."""
    return [len(prompt_ids), seed, 9], [-1.0, -2.0, -3.0]


@pytest.mark.parametrize("engine", [ScriptedEngine(say), InFlightScriptedEngine(say)])
def test_a_scripted_engine_takes_turns_between_tokens(engine: ScriptedEngine) -> None:
    talks = [Talk(number) for number in range(3)]
    converse(conversation_with(engine), talks, lambda: engine.sync(WeightUpdate(version="r/1")))
    assert isinstance(conversation_with(engine), SteppedConversation)
    assert [[c.token_ids for _, c in talk.rows] for talk in talks] == [
        [(2, 0, 9), (7, 1, 9), (12, 2, 9)],
        [(3, 100, 9), (8, 101, 9), (13, 102, 9)],
        [(4, 200, 9), (9, 201, 9), (14, 202, 9)],
    ]
    versions = {span.version for talk in talks for _, c in talk.rows for span in c.weight_versions}
    assert versions == {"base", "r/1"}


def test_a_deposit_reaches_a_scripted_turn_in_its_middle() -> None:
    engine = InFlightScriptedEngine(say)
    conversation = engine.open()
    conversation.ask([Talk(0).next_request()])
    conversation.arrivals(0.0)
    engine.deposit(WeightUpdate(version="r/1"))
    conversation.ask([Talk(1).next_request()])
    ((early,), (late,)) = wait_for(conversation), wait_for(conversation)
    assert early.completions[0].weight_versions == (
        WeightSpan("base", 0, 1), WeightSpan("r/1", 1, 3),
    )  # fmt: skip
    assert late.completions[0].weight_versions == (WeightSpan("r/1", 0, 3),)


class Plain:
    """An engine that takes no requests while it samples."""

    def __init__(self) -> None:
        self.waves: list[list[str]] = []

    def generate(self, requests: Any) -> list[SampleResult]:
        self.waves.append([request.id for request in requests])
        return ScriptedEngine(say).generate(requests)


def test_an_engine_without_conversations_is_asked_in_waves() -> None:
    engine = Plain()
    talks = [Talk(number) for number in range(3)]
    conversation = conversation_with(engine)
    converse(conversation, talks)
    assert isinstance(conversation, Waves)
    assert engine.waves == [[f"{number}/{turn}" for number in range(3)] for turn in range(TURNS)]


def test_a_request_that_an_engine_does_not_accept_leaves_the_conversation_open() -> None:
    engine = ScriptedEngine(say)
    conversation = engine.open()
    engine.fail_next(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        conversation.ask([Talk(0).next_request()])
    assert conversation.arrivals(0.0) == []
    conversation.ask([Talk(0).next_request()])
    assert [result.id for result in conversation.arrivals(0.0)] == ["0/0"]


def test_a_thread_that_waits_gets_the_lock_before_a_loop_gets_it_again() -> None:
    """The loop never sleeps with the lock open; it ends once the other thread had its turn."""
    lock, waits, had_turn = FairLock(), threading.Event(), threading.Event()

    def take_turn() -> None:
        waits.set()
        with lock, lock:
            had_turn.set()

    other = threading.Thread(target=take_turn)
    turns = 0
    with lock:
        other.start()
        waits.wait()
        while not lock._door.locked():
            pass
    while not had_turn.is_set():
        with lock, lock:
            turns += 1
    other.join()
    assert turns <= 1

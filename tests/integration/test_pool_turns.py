"""Conversations with a pool: requests join engines that sample, and every turn is answered once.

Scripted engines in real Ray actors, which say a token of everything at a time. Tokens name the version
that sampled them, and the first of a completion the process that did.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial

import pytest

from rollouts.engines.protocol import (
    OpenEngine,
    SampleRequest,
    SampleResult,
    ScoreRequest,
    WeightUpdate,
)
from rollouts.engines.scripted import InFlightScriptedEngine
from rollouts.engines.vllm import VLLMConfig
from rollouts.errors import RunError
from rollouts.pool.pool import EnginePool
from rollouts.types import Sampling
from tests.patience import patient

CONFIG = VLLMConfig(model="scripted", max_num_seqs=8, device="cpu")
LENGTH = 4
"""Tokens of a completion."""
SLOW, DIE, RAISE = 101, 102, 103
"""First prompt tokens that make an engine hang, exit, or refuse: once, and the last always."""
PATIENCE_S = patient(30.0)
"""Seconds until something that hangs is given up."""

pytestmark = pytest.mark.usefixtures("ray_cluster", "travels_by_value")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Place of the marks by which engines are halted and misdeeds are done once."""
    return tmp_path_factory.mktemp("marks")


@pytest.fixture(scope="module")
def pool(folder, ray_cluster, travels_by_value):
    """Two engines that hold ``r/1``."""
    pool = pool_of(folder)
    yield pool
    pool.close()


def pool_of(folder, **options):
    options = {"start_deadline_s": patient(60), "deadline_s": patient(60)} | options
    factory = partial(scripted, folder)
    pool = EnginePool(CONFIG, num_engines=2, in_flight=True, engine_factory=factory, **options)
    pool.sync(WeightUpdate(version="r/1"))
    return pool


def scripted(folder):
    """Says its process, the seed, and then the number of its version; ``halt`` in the folder holds it up
    before the third token."""

    def say(prompt_ids, seed):
        trouble = prompt_ids[0]
        mark = folder / str(trouble)
        if trouble == RAISE:
            raise ValueError("this prompt is refused")
        if trouble > 100 and not mark.exists():
            mark.touch()
            os._exit(1) if trouble == DIE else time.sleep(600)
        version = int(engine.version.removeprefix("r/"))
        return [os.getpid(), seed, *[version] * (LENGTH - 2)], [-1.0] * LENGTH

    def before_token(position):
        deadline = time.monotonic() + PATIENCE_S
        while position == 2 and (folder / "halt").exists() and time.monotonic() < deadline:
            (folder / f"halted-{os.getpid()}").touch()
            time.sleep(0.01)

    engine = InFlightScriptedEngine(say, before_token=before_token)
    return engine


def turn(id, *, first=1, n=1, seed=0, follows=None):
    return SampleRequest(
        id=str(id), prompt_ids=(first, 2), n=n, sampling=Sampling(max_tokens=LENGTH), seed=seed,
        follows=follows,
    )  # fmt: skip


def answers(conversation, count) -> dict[str, SampleResult]:
    """Wait for a number of results, each of them once."""
    results: dict[str, SampleResult] = {}
    deadline = time.monotonic() + PATIENCE_S
    while len(results) < count and time.monotonic() < deadline:
        for result in conversation.arrivals(1.0):
            assert result.id not in results
            results[result.id] = result
    assert len(results) == count
    assert conversation.arrivals(0.0) == []
    return results


def process_of(result):
    return result.completions[0].token_ids[0]


def wait_for(condition, conversation):
    """Wait while nothing is answered; what missed an engine's call is sent again meanwhile."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < deadline:
        assert conversation.arrivals(0.01) == []
    assert condition()


def halt(pool, folder):
    """Hold both engines up in the middle of their turns."""
    for mark in folder.glob("halt*"):
        mark.unlink()
    (folder / "halt").touch()
    return lambda: len(list(folder.glob("halted-*"))) == len(pool.pids)


def versions_of(results):
    """Versions of every completion in order, checked against what its tokens say."""
    versions = {}
    for id, result in results.items():
        (completion,) = result.completions
        spans = completion.weight_versions
        for version, start, end in spans:
            said = completion.token_ids[max(start, 2) : end]
            assert set(said) <= {int(version.removeprefix("r/"))}
        assert spans[0].start == 0
        assert spans[-1].end == LENGTH
        versions[id] = [version for version, _, _ in spans]
    return versions


def test_three_turns_of_many_are_answered_once_by_the_engine_that_has_their_prefix(pool):
    assert isinstance(pool, OpenEngine)
    before, conversation, homes = sum(pool.metrics.tokens), pool.open(), {}
    for number in range(3):
        follows = f"/{number - 1}" if number else None
        requests = [
            turn(f"{i}/{number}", seed=10 * i + number, follows=follows and f"{i}{follows}")
            for i in range(8)
        ]
        conversation.ask(requests)
        results = answers(conversation, 8)
        for request in requests:
            (completion,) = results[request.id].completions
            assert completion.token_ids[1] == request.seed
            process = process_of(results[request.id])
            assert homes.setdefault(request.id[0], process) == process
    assert set(homes.values()) == set(pool.pids)
    assert sum(pool.metrics.tokens) - before == 3 * 8 * LENGTH
    conversation.close()


def test_more_than_engines_hold_wait_and_two_conversations_do_not_mix(pool):
    first, second = pool.open(), pool.open()
    first.ask([turn(f"a{i}", seed=i, n=2) for i in range(20)])
    second.ask([turn(f"b{i}", seed=i) for i in range(20)])
    with pytest.raises(ValueError, match="'b3' is under way"):
        second.ask([turn("b3")])
    assert set(answers(second, 20)) == {f"b{i}" for i in range(20)}
    results = answers(first, 20)
    assert [c.token_ids[1] for i in range(20) for c in results[f"a{i}"].completions] == [
        seed for i in range(20) for seed in (i, i + 1)
    ]
    first.ask([turn("dropped")])
    first.close()
    assert first.arrivals(0.0) == []
    assert pool.generate([turn("after")])[0].id == "after"


def test_weights_come_into_turns_by_deposit_and_between_them_by_sync(pool, folder):
    """The sync comes from another thread than the conversation, as a learner's does."""
    pool.sync(WeightUpdate(version="r/1"))
    conversation, is_halted = pool.open(), halt(pool, folder)
    conversation.ask([turn(i) for i in range(4)])
    wait_for(is_halted, conversation)
    assert pool.deposit(WeightUpdate(version="r/2")).num_engines == 2
    (folder / "halt").unlink()
    assert set(map(tuple, versions_of(answers(conversation, 4)).values())) == {("r/1", "r/2")}

    is_halted = halt(pool, folder)
    conversation.ask([turn(f"{i}/1", follows=str(i)) for i in range(4)])
    wait_for(is_halted, conversation)
    learner = threading.Thread(target=pool.sync, args=(WeightUpdate(version="r/3"),))
    learner.start()
    (folder / "halt").unlink()
    results = answers(conversation, 4)
    assert set(map(tuple, versions_of(results).values())) == {("r/2",)}
    learner.join(PATIENCE_S)
    conversation.ask([turn(f"{i}/2", follows=f"{i}/1") for i in range(4)])
    assert [
        len(batch) for batch in pool.scores([ScoreRequest(prompt_ids=(1,), completion_ids=(2,))])
    ]
    assert set(map(tuple, versions_of(answers(conversation, 4)).values())) == {("r/3",)}


def test_turns_of_an_engine_that_dies_hangs_or_refuses_are_answered_by_others(tmp_path):
    pool = pool_of(tmp_path, deadline_s=patient(3))
    try:
        conversation = pool.open()
        requests = [turn(i, seed=i) for i in range(6)]
        conversation.ask([*requests, turn("die", first=DIE), turn("slow", first=SLOW)])
        results = answers(conversation, 8)
        assert all(len(r.completions[0].token_ids) == LENGTH for r in results.values())
        assert [results[str(i)].completions[0].token_ids[1] for i in range(6)] == list(range(6))
        assert (pool.metrics.restarts, pool.metrics.failed_requests) == (2, 0)
        conversation.ask([turn(f"{i}/1", seed=i, follows=str(i)) for i in range(6)])
        conversation.ask([turn("bad", first=RAISE)])
        results = answers(conversation, 7)
        assert "this prompt is refused" in results.pop("bad").completions[0].detail
        assert {process_of(result) for result in results.values()} <= set(pool.pids)
        assert (pool.metrics.restarts, pool.metrics.failed_requests) == (2, 1)
        os.kill(pool.pids[0], signal.SIGKILL)
        conversation.ask([turn(f"{i}/2", seed=i, follows=f"{i}/1") for i in range(6)])
        assert set(versions_of(answers(conversation, 6))) == {f"{i}/2" for i in range(6)}
        conversation.ask([turn("last")])
    finally:
        pool.close()
    with pytest.raises(RunError, match="closed"):
        conversation.arrivals(1.0)

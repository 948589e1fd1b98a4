"""New weights for a pool whose engines are sampling: what does not load, what comes too late, who dies.

Scripted engines in real Ray actors. Every token says the version that sampled it, so a span that names
other weights than the tokens is a lie that a test sees. Engines halt where a test tells them to.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from functools import partial

import pytest

from rollouts.engines.protocol import SampleRequest, WeightUpdate
from rollouts.engines.scripted import InFlightScriptedEngine
from rollouts.engines.vllm import VLLMConfig
from rollouts.errors import RunError
from rollouts.pool.pool import EnginePool
from rollouts.types import Sampling
from tests.patience import patient

CONFIG = VLLMConfig(model="scripted", max_num_seqs=8, device="cpu")
LENGTH = 4
"""Tokens of every completion but the short ones."""

PATIENCE_S = patient(30.0)
"""Seconds until something that hangs is given up."""

pytestmark = pytest.mark.usefixtures("ray_cluster", "travels_by_value")


@pytest.fixture
def pool_of(tmp_path):
    """Makes pools of engines that hold ``r/1``."""
    pools = []

    def make(num_engines=1, **options):
        options = {"start_deadline_s": patient(60), "deadline_s": patient(60)} | options
        pool = EnginePool(
            CONFIG,
            num_engines=num_engines,
            in_flight=True,
            engine_factory=partial(scripted, tmp_path),
            **options,
        )
        pools.append(pool)
        pool.sync(WeightUpdate(version="r/1"))
        return pool

    yield make
    for pool in pools:
        pool.close()


def scripted(folder):
    """Says the number of its version; ``halt`` in the folder holds it up before the third token, a file
    named after a version says how often that version does not load."""

    def say(prompt_ids, seed):
        return [int(engine.version.removeprefix("r/"))] * prompt_ids[0], [-1.0] * prompt_ids[0]

    def load(update):
        mark = folder / update.version.replace("/", "-")
        if not mark.exists():
            return
        with mark.open("r+") as count:
            fcntl.flock(count, fcntl.LOCK_EX)  # two engines load at the same time
            if left := int(count.read()):
                count.seek(0)
                count.truncate()
                count.write(str(left - 1))
                count.flush()
                raise ValueError("it lacks tensors")

    def before_token(position):
        deadline = time.monotonic() + PATIENCE_S
        while position == 2 and (folder / "halt").exists() and time.monotonic() < deadline:
            (folder / "halted").touch()
            time.sleep(0.01)

    engine = InFlightScriptedEngine(say, load=load, before_token=before_token)
    return engine


def asked(*lengths):
    """One request per length in tokens."""
    return [
        SampleRequest(
            id=str(i), prompt_ids=(tokens,), n=2, sampling=Sampling(max_tokens=LENGTH), seed=i
        )
        for i, tokens in enumerate(lengths)
    ]


def halted(pool, folder, requests):
    """Submit, and wait until an engine is in the middle of it."""
    (folder / "halt").touch()
    ticket = pool.submit(requests)
    wait_for((folder / "halted").exists)
    return ticket


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def check(results, requests):
    """Every request once, in order, and every span of the version that its tokens say."""
    assert [r.id for r in results] == [r.id for r in requests]
    for completion in (c for result in results for c in result.completions):
        told = [0] * len(completion.token_ids)
        for version, start, end in completion.weight_versions:
            told[start:end] = [int(version.removeprefix("r/"))] * (end - start)
        assert list(completion.token_ids) == told


def tokens_of(results):
    return [result.completions[0].token_ids for result in results]


def test_weights_that_fail_to_load_in_the_middle_cost_an_engine_and_no_sample(pool_of, tmp_path):
    """Finished completions have the old weights; the others are sampled again with the new ones. None of
    them is to blame, so it is asked together: one by one, each request would be a batch of its own."""
    pool, requests = pool_of(), asked(2, LENGTH, LENGTH)
    (tmp_path / "r-2").write_text("1")
    ticket = halted(pool, tmp_path, requests)
    assert pool.deposit(WeightUpdate(version="r/2")).num_engines == 1
    (tmp_path / "halt").unlink()
    assert [[place for place, _ in found] for found in ticket.arrivals()] == [[0], [1, 2]]
    results = ticket()
    check(results, requests)
    assert tokens_of(results) == [(1, 1), (2,) * LENGTH, (2,) * LENGTH]
    assert (pool.metrics.restarts, pool.metrics.failed_requests) == (1, 0)
    (reason,) = pool.replaced
    assert reason == "engine 0: WeightLoadError: 'r/2' was not loaded: it lacks tensors"


def test_weights_that_never_load_end_the_call_with_the_reason(pool_of, tmp_path):
    pool, requests = pool_of(max_restarts=2), asked(2, LENGTH)
    (tmp_path / "r-2").write_text("99")
    ticket = halted(pool, tmp_path, requests)
    pool.deposit(WeightUpdate(version="r/2"))
    (tmp_path / "halt").unlink()
    with pytest.raises(RunError, match="engine 0 failed 3 times in a row") as error:
        ticket()
    assert "it lacks tensors" in str(error.value)
    assert len(pool.replaced) == 2


def test_one_engine_of_two_that_cannot_load_leaves_its_work_to_both(pool_of, tmp_path):
    pool, requests = pool_of(2), asked(*[LENGTH] * 12)
    (tmp_path / "r-2").write_text("1")
    ticket = halted(pool, tmp_path, requests)
    assert pool.deposit(WeightUpdate(version="r/2")).num_engines == 2
    (tmp_path / "halt").unlink()
    results = ticket()
    check(results, requests)
    assert set(tokens_of(results)) <= {(1, 1, 2, 2), (2,) * LENGTH}
    assert (pool.metrics.restarts, pool.metrics.failed_requests) == (1, 0)


def test_weights_that_come_too_late_are_those_of_the_next_call(pool_of):
    pool, requests = pool_of(), asked(2, LENGTH)
    ticket = pool.submit(requests)
    arrivals = ticket.arrivals()
    places = [place for found in arrivals for place, _ in found]
    assert places == [0, 1]
    pool.deposit(WeightUpdate(version="r/2"))
    results = ticket()
    check(results, requests)
    assert tokens_of(results) == [(1, 1), (1,) * LENGTH]
    assert tokens_of(pool.generate(requests)) == [(2, 2), (2,) * LENGTH]


def test_weights_that_come_too_late_and_do_not_load_cost_the_next_call_nothing(pool_of, tmp_path):
    pool, requests = pool_of(), asked(2, LENGTH)
    pool.generate(requests)
    (tmp_path / "r-2").write_text("1")
    pool.deposit(WeightUpdate(version="r/2"))
    results = pool.generate(requests)
    check(results, requests)
    assert tokens_of(results) == [(2, 2), (2,) * LENGTH]
    assert (pool.metrics.restarts, pool.metrics.failed_requests) == (1, 0)


def test_a_replacement_that_starts_during_a_deposit_takes_what_is_newest(pool_of, tmp_path):
    """The only engine died with its samples; nobody is there to lay the weights before."""
    pool, requests = pool_of(), asked(LENGTH)
    ticket = halted(pool, tmp_path, requests)
    os.kill(pool.pids[0], signal.SIGKILL)
    assert pool.deposit(WeightUpdate(version="r/2")).num_engines == 0
    assert pool.deposit(WeightUpdate(version="r/3")).num_engines == 0
    (tmp_path / "halt").unlink()
    assert tokens_of(ticket()) == [(3,) * LENGTH]
    assert pool.deposit(WeightUpdate(version="r/4")).num_engines == 1
    assert tokens_of(pool.generate(requests)) == [(4,) * LENGTH]


def test_a_failed_call_frees_the_engines_of_the_calls_behind_it(pool_of, tmp_path):
    """Two calls are under way when the first cannot go on; the pool can be synced and asked again."""
    pool, requests = pool_of(2, max_restarts=0), asked(LENGTH)
    (tmp_path / "r-2").write_text("1")
    ticket = halted(pool, tmp_path, requests)
    pool.submit(requests)
    pool.deposit(WeightUpdate(version="r/2"))
    os.kill(pool.pids[0], signal.SIGKILL)
    (tmp_path / "halt").unlink()
    with pytest.raises(RunError, match="engine 0 failed 1 times in a row"):
        ticket()
    assert not any(slot.busy for slot in pool._fleet.slots)

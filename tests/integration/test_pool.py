"""The pool over real Ray actors: scripted engines in them, real deaths, real deadlines."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from rollouts.engines.protocol import SampleRequest, ScoreRequest, WeightUpdate
from rollouts.engines.scripted import ScriptedEngine
from rollouts.engines.transfer.client import EngineClient
from rollouts.engines.vllm import VLLMConfig
from rollouts.errors import RunError, UserError
from rollouts.pool.pool import EnginePool
from rollouts.types import Sampling
from tests.patience import patient

CONFIG = VLLMConfig(model="scripted", max_num_seqs=8, device="cpu")

SLOW, DIE, RAISE, BREAK = 101, 102, 103, 104
"""First prompt tokens that make an engine hang, exit, refuse the request, or fail in itself."""

pytestmark = pytest.mark.usefixtures("ray_cluster", "travels_by_value")


@pytest.fixture
def pool_of(tmp_path):
    """Makes pools of scripted engines; misdeeds happen once per ``tmp_path``."""
    pools = []

    def make(num_engines=2, always=False, **options):
        factory = partial(scripted, str(tmp_path), always)
        options = {
            "start_deadline_s": patient(60),
            "deadline_s": patient(60),
            "engine_factory": factory,
        } | options
        pools.append(EnginePool(CONFIG, num_engines=num_engines, **options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture(scope="module")
def healthy(ray_cluster, travels_by_value):
    """A pool of two engines for tests that ask nothing bad of it."""
    pool = EnginePool(
        CONFIG,
        num_engines=2,
        engine_factory=partial(scripted, "", False),
        start_deadline_s=patient(60),
        deadline_s=patient(60),
    )
    yield pool
    pool.close()


def scripted(folder, always):
    """An engine that says its process id, and misbehaves on certain prompts (once, or always)."""

    def script(prompt_ids, seed):
        trouble = prompt_ids[0]
        if trouble > 100:
            mark = Path(folder) / str(trouble)
            if always or not mark.exists():
                mark.touch()
                misbehave(trouble)
        return [os.getpid(), seed], [-0.5, -0.5]

    return ScriptedEngine(script)


def scripted_once(allowed):
    """An engine that starts when a file is there."""
    while not Path(allowed).exists():
        time.sleep(0.01)
    return ScriptedEngine(lambda prompt_ids, seed: ([seed], [-0.5]))


def misbehave(trouble):
    if trouble == SLOW:
        time.sleep(600)
    if trouble == DIE:
        os._exit(1)
    if trouble == RAISE:
        raise ValueError("this prompt is refused")
    raise RuntimeError("the engine is broken")


def ask(id, *, first=1, n=2, max_tokens=4, seed=0):
    sampling = Sampling(max_tokens=max_tokens)
    return SampleRequest(id=str(id), prompt_ids=(first, 2), n=n, sampling=sampling, seed=seed)


def engines_of(results):
    """Process ids of the engines that answered, per result."""
    return [r.completions[0].token_ids[0] if r.completions[0].token_ids else None for r in results]


def check_answers(requests, results):
    """Every request exactly once and in order, with its own seeds."""
    assert [r.id for r in results] == [r.id for r in requests]
    for request, result in zip(requests, results, strict=True):
        seeds = [c.token_ids[1] for c in result.completions]
        assert seeds == list(range(request.seed, request.seed + request.n))


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_work_is_balanced_and_answers_keep_their_order(healthy):
    pool, before = healthy, healthy.metrics.tokens
    # One request as dear as six of the others together.
    requests = [ask("big", max_tokens=24)] + [ask(i, seed=i) for i in range(6)]
    results = pool.generate(requests)
    check_answers(requests, results)
    big, *small = engines_of(results)
    assert len(set(small)) == 1
    assert big != small[0]
    tokens = [now - then for now, then in zip(pool.metrics.tokens, before, strict=True)]
    assert tokens in [[4, 24], [24, 4]]
    sequences = [ScoreRequest(prompt_ids=(1,), completion_ids=(2,) * n) for n in range(5)]
    assert pool.score(sequences) == [(-1.0,) * n for n in range(5)]
    assert pool.generate([]) == []


def test_scores_come_a_few_at_a_time_to_whoever_watches(healthy, monkeypatch):
    monkeypatch.setattr("rollouts.pool.pool.TOKENS_PER_CALL", 10)
    sequences = [ScoreRequest(prompt_ids=(1,), completion_ids=(2,) * n) for n in range(1, 11)]
    batches = list(healthy.scores(sequences))
    scored = {place: answer for batch in batches for place, answer in batch}
    assert [scored[place] for place in range(10)] == healthy.score(sequences)
    assert len(batches) > 2, "65 tokens at 10 a call"


def test_sync_reaches_every_engine(healthy):
    report = healthy.sync(WeightUpdate(version="r/1"))
    assert (report.version, report.num_engines) == ("r/1", 2)
    results = healthy.generate([ask(i) for i in range(8)])
    assert len(set(engines_of(results))) == 2
    assert {c.weight_versions[0].version for r in results for c in r.completions} == {"r/1"}


@pytest.mark.parametrize("trouble", [DIE, BREAK])
def test_an_engine_that_dies_is_replaced_and_nothing_is_lost_or_doubled(pool_of, trouble):
    pool = pool_of()
    pool.sync(WeightUpdate(version="r/1"))
    pool.sync(WeightUpdate(version="r/2"))
    before = set(pool.pids)
    # 40 completions on 2 engines of 8: several chunks, one of them deadly.
    requests = [ask(i, seed=i, first=trouble if i == 7 else 1) for i in range(20)]
    results = pool.generate(requests)
    check_answers(requests, results)
    assert pool.metrics.restarts == 1
    assert {c.weight_versions[0].version for r in results for c in r.completions} == {"r/2"}
    pool.generate(requests)
    assert len(before & set(pool.pids)) == 1


def test_an_engine_killed_between_two_calls_is_noticed_by_sync(pool_of):
    pool = pool_of()
    pool.wait_ready()
    os.kill(pool.pids[0], signal.SIGKILL)
    assert pool.sync(WeightUpdate(version="r/1")).num_engines == 1
    requests = [ask(i, seed=i) for i in range(20)]
    check_answers(requests, pool.generate(requests))
    assert pool.metrics.restarts == 1


def test_a_late_engine_is_replaced(pool_of):
    pool = pool_of(num_engines=1, deadline_s=patient(4))
    pool.wait_ready()
    (late,) = pool.pids
    requests = [ask("a", first=SLOW), ask("b", seed=4)]
    check_answers(requests, pool.generate(requests))
    assert pool.metrics.restarts == 1
    assert gone(late)


def test_one_poisonous_request_fails_alone(pool_of):
    pool = pool_of(1, always=True)
    requests = [ask(i, seed=i, first=RAISE if i == 3 else 1) for i in range(8)]
    results = pool.generate(requests)
    assert [r.id for r in results] == [str(i) for i in range(8)]
    failed = results.pop(3)
    assert [c.finish_reason for c in failed.completions] == ["failed", "failed"]
    assert "this prompt is refused" in failed.completions[0].detail
    check_answers([r for r in requests if r.id != "3"], results)
    assert (pool.metrics.restarts, pool.metrics.failed_requests) == (0, 1)


def test_a_request_that_kills_engines_is_given_up(pool_of):
    pool = pool_of(num_engines=1, always=True)
    good, bad = pool.generate([ask("good"), ask("bad", first=DIE)])
    check_answers([ask("good")], [good])
    assert bad.completions[0].finish_reason == "failed"
    assert "3 times" in bad.completions[0].detail


def test_the_pool_gives_up_with_a_reason(pool_of):
    pool = pool_of(num_engines=1, always=True, max_restarts=1)
    with pytest.raises(RunError, match="engine 0 failed 2 times in a row") as error:
        pool.generate([ask("a", first=BREAK), ask("b", first=BREAK)])
    assert "the engine is broken" in str(error.value)
    assert error.value.remedy


def test_an_interrupted_call_leaves_the_pool_usable(pool_of):
    pool = pool_of(num_engines=1, deadline_s=patient(3))
    pool.wait_ready()
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    with pytest.raises(KeyboardInterrupt):
        pool.generate([ask("a", first=SLOW)])
    requests = [ask("b", seed=1)]
    check_answers(requests, pool.generate(requests))


class Streaming:
    """Hands over every request as it is done; ``DIE`` ends its process once, when the caller is ready."""

    def __init__(self, folder):
        self.folder = folder

    def stream(self, requests):
        engine = scripted(self.folder, always=False)
        for place, request in enumerate(requests):
            while request.prompt_ids[0] == DIE and not (Path(self.folder) / "ready").exists():
                time.sleep(0.01)
            yield [(place, *engine.generate([request]))]

    def close(self):
        pass


def test_results_come_as_they_are_finished_and_survive_their_engine(pool_of, tmp_path):
    """The engine dies at the third request: the first two were handed over and are not asked again."""
    pool = pool_of(1, engine_factory=partial(Streaming, str(tmp_path)))
    pool.wait_ready()
    first = pool.pids[0]
    requests = [ask(i, seed=i, first=DIE if i == 2 else 1) for i in range(4)]
    ticket = pool.submit(requests)
    places = []
    for found in ticket.arrivals():
        places += [place for place, _ in found]
        if places == [0, 1]:
            (tmp_path / "ready").touch()
    assert places == [0, 1, 2, 3]
    results = ticket()
    check_answers(requests, results)
    assert engines_of(results) == [first, first, pool.pids[0], pool.pids[0]]
    assert pool.pids[0] != first
    assert pool.metrics.tokens == (16,)


def test_calls_are_collected_in_any_order(pool_of):
    """The earlier one holds the only engine: collecting the later one finishes it on the way."""
    pool = pool_of(1)
    calls = [[ask(i, seed=i)] for i in (1, 2, 3)]
    tickets = [pool.submit(requests) for requests in calls]
    for i in (2, 0, 1):
        check_answers(calls[i], tickets[i]())


def test_weights_for_running_engines_need_a_pool_made_for_them(pool_of):
    pool = pool_of(1)
    with pytest.raises(ValueError, match="in_flight=True"):
        pool.deposit(WeightUpdate(version="r/1"))
    pool = pool_of(1, in_flight=True)
    with pytest.raises(RunError, match="ScriptedEngine takes no weights while it samples"):
        pool.deposit(WeightUpdate(version="r/1"))
    with pytest.raises(RunError, match="not every engine took 'r/1'"):
        pool.generate([ask("a")])
    pool.sync(WeightUpdate(version="r/1"))
    check_answers([ask("a")], pool.generate([ask("a")]))


def test_a_stream_that_ends_early_is_asked_for_the_rest(pool_of, tmp_path):
    class Forgetful(Streaming):
        def stream(self, requests):
            yield from list(super().stream(requests))[:1]

    pool = pool_of(1, engine_factory=partial(Forgetful, str(tmp_path)))
    requests = [ask(i, seed=i) for i in range(3)]
    check_answers(requests, pool.generate(requests))


def test_a_start_that_fails_is_told_in_its_own_words(pool_of):
    def refuse():
        raise UserError("no such model", remedy="name another")

    with pytest.raises(UserError, match="no such model"):
        pool_of(1, engine_factory=refuse).wait_ready()

    def break_down():
        raise OSError("disk full")

    with pytest.raises(RunError, match="engine 0 did not start") as error:
        pool_of(1, engine_factory=break_down).generate([ask("a")])
    assert "disk full" in str(error.value)


def test_an_engine_that_dies_while_it_starts_is_replaced(pool_of, tmp_path):
    def die_first(always):
        mark = tmp_path / "died"
        if always or not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return scripted("", False)

    notes = []
    pool = pool_of(1, engine_factory=partial(die_first, False), note=notes.append)
    check_answers([ask("a")], pool.generate([ask("a")]))
    assert pool.metrics.restarts == 1
    assert "engine 0 died while it started; another one starts" in notes

    with pytest.raises(RunError, match="engine 0 did not start"):
        pool_of(1, engine_factory=partial(die_first, True), max_restarts=1).wait_ready()


def test_a_start_has_a_deadline(pool_of):
    with pytest.raises(RunError, match="engine 0 did not start") as error:
        pool_of(1, engine_factory=partial(time.sleep, 600), start_deadline_s=1).wait_ready()
    assert "within 1 s" in str(error.value)


def test_the_constructor_does_not_wait(pool_of, tmp_path):
    """No engine can start before it has returned."""
    allowed = tmp_path / "allowed"
    pool = pool_of(engine_factory=partial(scripted_once, str(allowed)))
    allowed.touch()
    pool.wait_ready()
    assert len(set(pool.pids)) == 2


def test_close_leaves_no_process(pool_of):
    pool = pool_of()
    pool.wait_ready()
    pids = pool.pids
    assert not any(gone(pid) for pid in pids)
    pool.close()
    pool.close()
    deadline = time.monotonic() + patient(10)
    while not all(gone(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(gone(pid) for pid in pids)
    with pytest.raises(RunError, match="closed"):
        pool.generate([ask("a")])


def test_an_engine_that_takes_no_weights_is_not_waited_for_forever() -> None:
    import ray

    class Deaf:
        def transfer(self, verb: str, info: Any, version: str) -> None:
            time.sleep(600.0)

    actor = ray.remote(num_cpus=0)(Deaf).remote()
    client = EngineClient([actor], 1, timeout_s=0.5)
    with pytest.raises(TimeoutError, match=r"1 of 1 engines did not start .* within 0\.5 s"):
        client.start_weight_update()
    ray.kill(actor)

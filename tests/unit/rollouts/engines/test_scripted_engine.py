"""The scripted engine keeps the contract that real engines keep."""

from __future__ import annotations

import pytest

from rollouts.engines.protocol import (
    InFlightEngine,
    RolloutEngine,
    SampleRequest,
    ScoreRequest,
    StreamingEngine,
    WeightLoadError,
    WeightUpdate,
)
from rollouts.engines.scripted import InFlightScriptedEngine, ScriptedEngine
from rollouts.types import Sampling, WeightSpan

EOS = 9


def script(prompt_ids: tuple[int, ...], seed: int) -> tuple[list[int], list[float]]:
    """Three tokens: the prompt's first, the seed, and the end."""
    return [prompt_ids[0], seed, EOS], [-0.1, -0.2, -0.3]


def ask(id: str, *, n: int = 1, max_tokens: int = 8, stop: tuple[int, ...] = ()) -> SampleRequest:
    sampling = Sampling(max_tokens=max_tokens, stop_token_ids=stop)
    return SampleRequest(id=id, prompt_ids=(5, 6), n=n, sampling=sampling, seed=3)


def test_completions_of_one_request_differ_by_seed():
    engine: RolloutEngine = ScriptedEngine(script)
    (result,) = engine.generate([ask("a", n=2)])
    assert result.id == "a"
    assert [c.token_ids for c in result.completions] == [(5, 3, EOS), (5, 4, EOS)]
    assert result.completions[0].logprobs_T == (-0.1, -0.2, -0.3)
    assert result.completions[0].finish_reason == "stop"


def test_a_completion_is_cut_at_max_tokens():
    (result,) = ScriptedEngine(script).generate([ask("a", max_tokens=2)])
    (completion,) = result.completions
    assert (completion.token_ids, completion.logprobs_T) == ((5, 3), (-0.1, -0.2))
    assert completion.finish_reason == "length"


@pytest.mark.parametrize(("eos_ids", "stop", "reason"), [
    ((EOS,), (), "stop"), ((), (EOS,), "stop"), ((), (), "length"),
])  # fmt: skip
def test_a_full_completion_stopped_only_if_it_ends_in_a_stop_token(eos_ids, stop, reason):
    engine = ScriptedEngine(script, eos_ids=eos_ids)
    (result,) = engine.generate([ask("a", max_tokens=3, stop=stop)])
    assert result.completions[0].finish_reason == reason


def test_sync_stamps_the_tokens_that_follow():
    engine = ScriptedEngine(script)
    report = engine.sync(WeightUpdate(version="r/1"))
    (result,) = engine.generate([ask("a")])
    assert report.version == "r/1"
    assert result.completions[0].weight_versions == (WeightSpan("r/1", 0, 3),)


def test_it_fails_on_demand():
    engine = ScriptedEngine(script)
    engine.fail_request("b", "lost")
    engine.fail_next(RuntimeError("down"))
    with pytest.raises(RuntimeError, match="down"):
        engine.generate([ask("a")])
    a, b = engine.generate([ask("a"), ask("b", n=2)])
    assert a.completions[0].finish_reason == "stop"
    assert [c.detail for c in b.completions] == ["lost", "lost"]


def test_scores_have_one_value_per_completion_token():
    engine = ScriptedEngine(script, scorer=lambda prompt, said: [-float(t) for t in said])
    request = ScoreRequest(prompt_ids=(5,), completion_ids=(1, 2))
    assert engine.score([request]) == [(-1.0, -2.0)]
    assert ScriptedEngine(script).score([request]) == [(-1.0, -1.0)]


def test_a_script_must_give_one_logprob_per_token():
    engine = ScriptedEngine(lambda prompt, seed: ([1, 2], [-0.1]))
    with pytest.raises(ValueError, match="2 tokens and 1 logprobs"):
        engine.generate([ask("a")])


class Versions:
    """Says the number of the version that it holds, four tokens long; the k-th token may be preceded by
    a deposit."""

    def __init__(self, deposits: dict[int, str], broken: tuple[str, ...] = ()) -> None:
        self.engine = InFlightScriptedEngine(
            self._say, load=self._load, before_token=self._before_token
        )
        self.deposits, self.broken = deposits, broken
        self.engine.sync(WeightUpdate(version="r/1"))

    def _say(self, prompt_ids: tuple[int, ...], seed: int) -> tuple[list[int], list[float]]:
        return [int(self.engine.version.removeprefix("r/"))] * prompt_ids[0], [-1.0] * prompt_ids[0]

    def _load(self, update: WeightUpdate) -> None:
        if update.version in self.broken:
            raise ValueError("it lacks tensors")

    def _before_token(self, position: int) -> None:
        if position in self.deposits:
            self.engine.deposit(WeightUpdate(version=self.deposits.pop(position)))


def long(id: str, tokens: int) -> SampleRequest:
    return SampleRequest(id=id, prompt_ids=(tokens,), n=2, sampling=Sampling(max_tokens=4), seed=0)


def test_in_flight_weights_count_from_the_next_token():
    engine = Versions({1: "r/2", 3: "r/3"}).engine
    assert isinstance(engine, InFlightEngine)
    assert isinstance(engine, StreamingEngine)
    first, second = engine.stream([long("long", 4), long("short", 2)])
    ((place, short),) = first
    assert (place, short.completions[0].token_ids) == (1, (1, 2))
    ((place, whole),) = second
    assert (place, whole.id) == (0, "long")
    for completion in whole.completions:
        assert completion.token_ids == (1, 2, 2, 3)
        assert completion.finish_reason == "length"
        assert completion.weight_versions == (
            WeightSpan("r/1", 0, 1), WeightSpan("r/2", 1, 3), WeightSpan("r/3", 3, 4),
        )  # fmt: skip


def test_the_later_of_two_deposits_counts_and_a_sync_forgets_both():
    engine = Versions({}).engine
    engine.deposit(WeightUpdate(version="r/2"))
    engine.deposit(WeightUpdate(version="r/3"))
    (result,) = engine.generate([long("a", 1)])
    assert result.completions[0].token_ids == (3,)
    engine.deposit(WeightUpdate(version="r/4"))
    engine.sync(WeightUpdate(version="r/5"))
    (result,) = engine.generate([long("a", 1)])
    assert result.completions[0].token_ids == (5,)


def test_weights_that_do_not_load_end_the_call_and_nothing_is_said_before_a_sync():
    engine = Versions({2: "r/2"}, broken=("r/2",)).engine
    stream = engine.stream([long("short", 1), long("long", 4)])
    assert [place for place, _ in next(stream)] == [0]
    with pytest.raises(WeightLoadError, match="'r/2' was not loaded: it lacks tensors"):
        next(stream)
    for ask_again in (lambda: engine.generate([long("a", 1)]), lambda: engine.score([])):
        with pytest.raises(RuntimeError, match="half-way; sync again"):
            ask_again()
    engine.sync(WeightUpdate(version="r/3"))
    (result,) = engine.generate([long("a", 1)])
    assert result.completions[0].token_ids == (3,)

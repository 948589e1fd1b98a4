"""Version that an engine reports after a load that failed; vLLM itself is replaced."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from rollouts.engines.protocol import ScoreRequest, WeightLoadError, WeightUpdate
from rollouts.engines.vllm import VLLMConfig, VLLMEngine


class Emptied:
    """A vLLM with nothing to do, whose prefix cache can be in use."""

    def __init__(self) -> None:
        self.version, self.cache_free, self.loaded = "base", True, 0
        self.llm_engine = SimpleNamespace(
            get_weight_version=lambda: self.version,
            set_weight_version=lambda version: setattr(self, "version", version),
            has_unfinished_requests=lambda: False,
            abort_request=lambda ids: None,
        )

    def collective_rpc(self, method: str) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, told: object) -> None:
        self.loaded += 1

    def finish_weight_update(self) -> None: ...

    def reset_prefix_cache(self, *, reset_running_requests: bool) -> bool:
        return self.cache_free


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Emptied:
    found = Emptied()
    monkeypatch.setattr("rollouts.engines.vllm._start_vllm", lambda config: found)
    return found


def update(version: str) -> WeightUpdate:
    return WeightUpdate(version=version, tensors={})


def test_weights_without_their_version_are_not_sampled_from(vllm: Emptied) -> None:
    """They are loaded and the old version still stands: every token would name the wrong weights."""
    engine = VLLMEngine(VLLMConfig(model="away"))
    engine.sync(update("r/1"))
    assert engine.generate([]) == []
    vllm.cache_free = False
    with pytest.raises(RuntimeError, match="prefix cache"):
        engine.sync(update("r/2"))
    assert (vllm.loaded, engine.version) == (2, "r/1")
    with pytest.raises(RuntimeError, match="half-way; sync again"):
        engine.generate([])
    vllm.cache_free = True
    engine.sync(update("r/2"))
    assert engine.generate([]) == []
    assert engine.version == "r/2"


def test_a_deposit_that_does_not_load_is_told_apart_from_a_bad_request(vllm: Emptied) -> None:
    engine = VLLMEngine(VLLMConfig(model="away"))
    vllm.cache_free = False
    engine.deposit(update("r/1"))
    with pytest.raises(WeightLoadError, match="'r/1' was not loaded: the prefix cache"):
        engine.generate([])
    with pytest.raises(RuntimeError, match="half-way; sync again"):
        engine.generate([])
    engine.deposit(update("r/2"))
    vllm.cache_free = True
    assert engine.generate([]) == []
    assert engine.version == "r/2"


class Scoring(Emptied):
    """A vLLM that gives every token the number of updates loaded, with news in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.model_config = SimpleNamespace(get_vocab_size=lambda: 1 << 40)
        self.queue: list[tuple[str, int]] = []
        self.before_step: Callable[[], object] = lambda: None
        self.llm_engine.add_request = self.add
        self.llm_engine.has_unfinished_requests = lambda: bool(self.queue)
        self.llm_engine.step = self.step

    def add(self, name: str, prompt: dict[str, list[int]], params: object, **_: object) -> None:
        self.queue.append((name, len(prompt["prompt_token_ids"])))

    def step(self) -> list[SimpleNamespace]:
        self.before_step()
        name, tokens = self.queue.pop(0)
        logprobs = SimpleNamespace(logprobs=[float(self.loaded)] * tokens)
        return [SimpleNamespace(request_id=name, prompt_logprobs=logprobs)]


def test_what_is_scored_together_is_of_one_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three sequences, each a part of its own, while weights arrive in every step."""
    vllm = Scoring()
    monkeypatch.setattr("rollouts.engines.vllm._start_vllm", lambda config: vllm)
    kinds = SimpleNamespace(RequestOutputKind=SimpleNamespace(FINAL_ONLY=0))
    for name, module in {
        "vllm": SimpleNamespace(SamplingParams=dict),
        "vllm.sampling_params": kinds,
        "vllm.exceptions": SimpleNamespace(VLLMClientError=ValueError),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    engine = VLLMEngine(VLLMConfig(model="away"))
    engine.deposit(update("r/1"))
    vllm.before_step = lambda: engine.deposit(update("r/2"))
    sequence = ScoreRequest(prompt_ids=(1, 2), completion_ids=(3,))
    assert engine.score([sequence] * 3) == [(1.0,)] * 3
    assert engine.version == "r/1"
    assert engine.generate([]) == []
    assert (engine.version, vllm.loaded) == ("r/2", 2)

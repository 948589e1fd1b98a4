"""One engine over two processes of vLLM's: the same logprobs as the learner's, sync after sync."""

from __future__ import annotations

import os
import signal
from functools import partial

import psutil
import pytest
import torch

from rollouts.engines import vllm
from rollouts.engines.division import Division
from rollouts.engines.protocol import SampleRequest, ScoreRequest, WeightUpdate
from rollouts.engines.vllm import VLLMConfig, VLLMEngine
from rollouts.pool.pool import EnginePool
from rollouts.types import Sampling
from tests.patience import patient

TOLERANCE = 1e-4
"""Largest difference of a logprob, in nats; stale weights differ by about 1."""

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster", "travels_by_value")]


def in_small_parts(config: VLLMConfig) -> VLLMEngine:
    """Start an engine whose workers get a few tensors of an update at a time."""
    vllm.PART_BYTES = 40_000
    return VLLMEngine(config)


@pytest.fixture(scope="module")
def pool(ray_cluster, travels_by_value, tiny_llama):
    config = VLLMConfig(
        model=str(tiny_llama),
        max_num_seqs=16,
        kv_cache_mb=64,
        device="cpu",
        division=Division(tensor=2),
    )
    pool = EnginePool(
        config, engine_factory=partial(in_small_parts, config), start_deadline_s=patient(180.0)
    )
    yield pool
    pool.close()


def worst(pool, model):
    """Return the largest difference of sampled and of scored logprobs, engine against ``model``."""
    request = SampleRequest(
        id="a", prompt_ids=(2, 3, 4), n=4, sampling=Sampling(max_tokens=12), seed=5
    )
    (result,) = pool.generate([request])
    gaps = []
    for completion in result.completions:
        ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
        with torch.no_grad():
            logprobs = model(ids).logits[0].log_softmax(-1)
        wanted = logprobs[torch.arange(2, ids.shape[1] - 1), ids[0, 3:]]
        scored = pool.score(
            [ScoreRequest(prompt_ids=request.prompt_ids, completion_ids=completion.token_ids)]
        )
        gaps += [(torch.tensor(t) - wanted).abs().max() for t in (completion.logprobs_T, *scored)]
    return float(max(gaps))


def test_two_processes_hold_what_the_learner_holds(pool, tiny_llama):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    assert worst(pool, model) < TOLERANCE
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        tensors = {name: p.data for name, p in model.named_parameters()}
        pool.sync(WeightUpdate(version=f"r/{seed}", tensors=tensors))
        assert worst(pool, model) < TOLERANCE
    (pid,) = pool.pids
    workers = [child for child in psutil.Process(pid).children() if "Worker" in child.name()]
    assert len(workers) == 2

    # One of them dies: the engine is replaced, and the new one loads the weights before it answers.
    os.kill(workers[-1].pid, signal.SIGKILL)
    assert worst(pool, model) < TOLERANCE
    assert pool.metrics.restarts == 1
    assert not any(map(psutil.pid_exists, [pid, *(child.pid for child in workers)]))

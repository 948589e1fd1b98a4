"""One engine over two processes of vLLM's: the same logprobs as the learner's, sync after sync."""

from __future__ import annotations

import os
import signal
from functools import partial

import psutil
import pytest
import torch

from align.config.policy import EngineConfig, PolicyConfig
from align.learner.model.policy import Policy
from align.learner.ranks.group import LearnerGroup
from align.learner.ranks.ranks import Ranks
from align.learner.ranks.sharding import local, part_like
from rollouts.engines import vllm
from rollouts.engines.division import DeviceDivision
from rollouts.engines.protocol import SampleRequest, ScoreRequest, WeightUpdate
from rollouts.engines.vllm import VLLMConfig, VLLMEngine
from rollouts.errors import RunError
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
        division=DeviceDivision(tensor=2),
        weight_transfer="gloo",
    )
    pool = EnginePool(
        config, engine_factory=partial(in_small_parts, config), start_deadline_s=patient(180.0)
    )
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def ranks(ray_cluster, tiny_llama, tmp_path_factory):
    """Two ranks of a learner, each with half of the weights."""
    group = LearnerGroup(
        tiny_llama,
        PolicyConfig(model=str(tiny_llama), ranks=2),
        folder_of=lambda _: tiny_llama,
        scratch=tmp_path_factory.mktemp("scratch"),
        engines=EngineConfig(weight_transfer="gloo", deadline_s=patient(60.0)),
    )
    yield group
    group.close()


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


class Move:
    """Task that moves the weights, on every rank alike."""

    snapshots = ()

    def __call__(self, policy: Policy, ranks: Ranks, folder_of: object) -> None:
        torch.manual_seed(7)
        with torch.no_grad():
            for parameter in policy.parameters():
                whole = torch.randn(parameter.shape) * 0.05
                local(parameter).add_(local(part_like(whole, parameter)))


def test_sharded_weights_go_from_the_ranks_to_the_workers(pool, ranks, tiny_llama, tmp_path):
    from transformers import AutoModelForCausalLM

    for version in ("gloo/1", "gloo/2"):
        ranks.compute(Move())
        report = pool.sync(ranks.weights(version))
        assert (report.version, report.num_engines) == (version, 1)
        ranks.save(tmp_path / version[-1])
        model = AutoModelForCausalLM.from_pretrained(tmp_path / version[-1], dtype=torch.float32)
        assert worst(pool, model.eval()) < TOLERANCE

    # Nobody else has the weights of an engine that dies; the next sync gives them to its successor.
    (pid,) = pool.pids
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RunError, match="no engine has the weights 'gloo/2'"):
        worst(pool, model)
    pool.sync(ranks.weights("gloo/2"))
    assert worst(pool, model) < TOLERANCE

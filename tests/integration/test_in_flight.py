"""New weights in the middle of completions, with real vLLM: every token is of the version it names."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from rollouts.engines.protocol import SampleRequest, WeightUpdate
from rollouts.engines.vllm import VLLMConfig
from rollouts.pool.engine_slot import MAIL
from rollouts.pool.pool import EnginePool
from rollouts.types import Sampling
from tests.patience import patient

TOLERANCE = 1e-4
"""Largest difference of a logprob, in nats; with old keys and values it would be above 1."""

PROMPT = tuple(2 + i % 60 for i in range(140))
"""Fills a whole block of the prefix cache, which later requests find."""

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def pool(ray_cluster, tiny_llama):
    config = VLLMConfig(model=str(tiny_llama), max_num_seqs=4, kv_cache_mb=64, device="cpu")
    pool = EnginePool(config, in_flight=True)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def models(tiny_llama):
    """The model of every version: each a large step from the one before."""
    from transformers import AutoModelForCausalLM

    generator = torch.Generator().manual_seed(3)
    models = {}
    for version in ("r/0", "r/1", "r/2"):
        model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
        before = list(models.values())[-1].parameters() if models else ()
        with torch.no_grad():
            for parameter, old in zip(model.parameters(), before, strict=False):
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(old + 0.05 * noise)
        models[version] = model
    return models


def update(models, version):
    tensors = {name: p.data for name, p in models[version].named_parameters()}
    return WeightUpdate(version=version, tensors=tensors)


def requests(count):
    sampling = Sampling(max_tokens=100)
    return [
        SampleRequest(id=str(i), prompt_ids=PROMPT, n=4, sampling=sampling, seed=i)
        for i in range(count)
    ]


def gap(models, completion):
    """Largest difference between sampling logprobs and those of each token's own version."""
    ids = torch.tensor([[*PROMPT, *completion.token_ids]])
    worst = 0.0
    for version, start, end in completion.weight_versions:
        with torch.no_grad():
            logprobs = models[version](ids).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
        said = torch.tensor(completion.token_ids)[:, None]
        theirs = torch.tensor(completion.logprobs_T)[start:end]
        worst = max(worst, float((logprobs.gather(1, said)[start:end, 0] - theirs).abs().max()))
    return worst


def test_tokens_after_an_update_are_exactly_of_the_new_weights(pool, models):
    """Four sequences run at a time, so an update after the first answers finds others half-way."""
    pool.sync(update(models, "r/0"))
    asked = requests(6)
    ticket = pool.submit(asked)
    arrivals = ticket.arrivals()
    next(arrivals)
    assert pool.deposit(update(models, "r/1")).num_engines == 1
    for _ in arrivals:
        pass
    completions = [c for result in ticket() for c in result.completions]
    assert {c.finish_reason for c in completions} <= {"stop", "length"}
    told = [tuple(span.version for span in c.weight_versions) for c in completions]
    assert set(told) == {("r/0",), ("r/0", "r/1"), ("r/1",)}
    for c in completions:
        assert [s.start for s in c.weight_versions] == [0, *(s.end for s in c.weight_versions[:-1])]
        assert c.weight_versions[-1].end == len(c.token_ids) == len(c.logprobs_T)
        assert gap(models, c) < TOLERANCE
    assert pool.metrics.restarts == pool.metrics.failed_requests == 0


def test_what_is_deposited_with_nothing_under_way_holds_for_the_next_call(pool, models):
    pool.sync(update(models, "r/0"))
    pool.deposit(update(models, "r/1"))
    pool.deposit(update(models, "r/2"))
    (result,) = pool.generate(requests(1))
    assert {s.version for c in result.completions for s in c.weight_versions} == {"r/2"}
    assert max(gap(models, c) for c in result.completions) < TOLERANCE
    pool.deposit(update(models, "r/1"))
    assert pool.sync(update(models, "r/0")).version == "r/0"
    (result,) = pool.generate(requests(1))
    assert {s.version for c in result.completions for s in c.weight_versions} == {"r/0"}


def test_an_engine_that_dies_after_a_deposit_comes_back_with_its_weights(pool, models):
    pool.sync(update(models, "r/0"))
    ticket = pool.submit(requests(6))
    arrivals = ticket.arrivals()
    next(arrivals)
    os.kill(pool.pids[0], signal.SIGKILL)
    pool.deposit(update(models, "r/2"))
    completions = [c for result in ticket() for c in result.completions]
    assert pool.metrics.restarts == 1
    assert completions[-1].weight_versions[0].version == "r/2"
    assert max(gap(models, c) for c in completions) < TOLERANCE


def test_weights_that_vllm_refuses_in_the_middle_cost_the_engine_and_no_sample(pool, models):
    """It gets other weights than the pool hands to replacements: some of the tensors only."""
    import ray

    pool.sync(update(models, "r/0"))
    before, asked = pool.metrics, requests(6)
    ticket = pool.submit(asked)
    arrivals = ticket.arrivals()
    next(arrivals)
    whole = update(models, "r/1")
    part = WeightUpdate(version="part", tensors=dict(list(whole.tensors.items())[:1]))
    pool.deposit(whole)
    (slot,) = pool._fleet.slots
    ray.get(slot.actor.deposit.options(concurrency_group=MAIL).remote(part), timeout=patient(30))
    for _ in arrivals:
        pass
    completions = [c for result in ticket() for c in result.completions]
    assert "was not loaded: the weight update lacks" in pool.replaced[-1]
    assert pool.metrics.restarts == before.restarts + 1
    assert pool.metrics.failed_requests == before.failed_requests
    versions = {span.version for c in completions for span in c.weight_versions}
    assert versions <= {"r/0", "r/1"}
    assert completions[-1].weight_versions[0].version == "r/1"
    assert max(gap(models, c) for c in completions) < TOLERANCE

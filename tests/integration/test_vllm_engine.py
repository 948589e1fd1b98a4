"""vLLM against Hugging Face: the same weights must give the same logprobs, sync after sync.

The engines run in Ray actors of their own; this process holds the reference model. Both engines
start at once, and the tests share them: each leaves behind the weights it says.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks.turns import MeasuredEngine
from rollouts.engines.backend import LINEAR_LAYERS
from rollouts.engines.protocol import BankAdapter, SampleRequest, ScoreRequest, WeightUpdate
from rollouts.engines.vllm import CPU_BLOCK_TOKENS, VLLMConfig, VLLMEngine, engine_environment
from rollouts.engines.vllm_bank import write_increment
from rollouts.errors import RunError, UserError
from rollouts.pool.pool import EnginePool
from rollouts.types import Increment, Sampling, WeightSpan

TOLERANCE = 1e-4
"""Largest difference of a logprob, in nats; stale weights differ by about 1."""

LONG = tuple(2 + i % 60 for i in range(200))
"""A prompt that fills whole blocks of the prefix cache."""

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def pools(ray_cluster, tiny_llama):
    """One engine for full weights and one for adapters."""
    config = VLLMConfig(model=str(tiny_llama), max_num_seqs=16, kv_cache_mb=64, device="cpu")
    lora = VLLMConfig(
        model=str(tiny_llama), max_num_seqs=16, kv_cache_mb=64, lora_rank=4, device="cpu"
    )
    measured = partial(MeasuredEngine, config)
    pools = EnginePool(config, engine_factory=measured), EnginePool(lora)
    yield pools
    for pool in pools:
        pool.close()


@pytest.fixture(scope="module")
def full(pools):
    return pools[0]


@pytest.fixture(scope="module")
def adapters(pools):
    return pools[1]


@pytest.fixture
def model(tiny_llama):
    """The reference, at its base weights."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


def ask(id="a", *, prompt=(2, 3, 4), n=4, seed=5, **sampling):
    sampling = Sampling(**{"max_tokens": 12, **sampling})
    return SampleRequest(id=id, prompt_ids=prompt, n=n, sampling=sampling, seed=seed)


def reference(model, prompt, said, temperature=1.0):
    """Logprobs of ``said`` after ``prompt`` by one forward pass."""
    ids = torch.tensor([[*prompt, *said]])
    with torch.no_grad():
        logprobs = (model(ids).logits[0].float() / temperature).log_softmax(-1)
    positions = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
    return logprobs[positions, ids[0, len(prompt) :]]


def worst(model, prompt, completions, temperature=1.0):
    """Largest difference between the engine's logprobs and the reference."""
    return max(
        (torch.tensor(c.logprobs_T) - reference(model, prompt, c.token_ids, temperature))
        .abs()
        .max()
        .item()
        for c in completions
    )


def perturb(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def weights(model, version):
    return WeightUpdate(version=version, tensors={n: p.data for n, p in model.named_parameters()})


def sample(pool, request):
    (result,) = pool.generate([request])
    assert result.id == request.id
    assert len(result.completions) == request.n
    return result.completions


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tied_weights_stay_right_through_two_syncs(full, model, temperature):
    full.sync(WeightUpdate(version="base"))
    request = ask(temperature=temperature)
    assert worst(model, request.prompt_ids, sample(full, request), temperature) < TOLERANCE
    for seed in (1, 2):
        before = [p.clone() for p in model.parameters()]
        perturb(model, seed)
        assert not torch.equal(before[0], next(model.parameters()))
        report = full.sync(weights(model, f"r/{seed}"))
        assert (report.version, report.num_engines) == (f"r/{seed}", 1)
        assert worst(model, request.prompt_ids, sample(full, request), temperature) < TOLERANCE


def test_a_cached_prompt_is_not_answered_from_old_weights(full, model):
    full.sync(weights(model, "cache/0"))
    sample(full, ask(prompt=LONG))
    perturb(model, 3)
    full.sync(weights(model, "cache/1"))
    assert worst(model, LONG, sample(full, ask(prompt=LONG))) < TOLERANCE


def test_no_update_at_all_means_the_base_again(full, model):
    changed = type(model)(model.config)
    full.sync(weights(changed, "other"))
    assert worst(model, (2, 3, 4), sample(full, ask())) > 0.1
    full.sync(WeightUpdate(version="base"))
    assert worst(model, (2, 3, 4), sample(full, ask())) < TOLERANCE


def test_scores_equal_the_reference_with_a_warm_prefix_cache(full, model):
    full.sync(weights(model, "score"))
    completions = sample(full, ask(prompt=LONG, temperature=0.7))
    requests = [ScoreRequest(prompt_ids=LONG, completion_ids=c.token_ids) for c in completions]
    requests.append(ScoreRequest(prompt_ids=(7,), completion_ids=(8, 9)))
    requests.append(ScoreRequest(prompt_ids=(7,), completion_ids=()))
    for request, scores in zip(requests, full.score(requests), strict=True):
        want = reference(model, request.prompt_ids, request.completion_ids)
        assert len(scores) == len(request.completion_ids)
        assert torch.allclose(torch.tensor(scores), want, atol=1e-5)


def test_a_sequence_without_room_for_a_token_cannot_be_scored(full):
    before = full.pids
    request = ScoreRequest(prompt_ids=LONG, completion_ids=(2,) * 56)
    with pytest.raises(RunError, match="could not be scored"):
        full.score([request])
    assert full.pids == before


def test_every_token_knows_its_weights(full, model):
    full.sync(weights(model, "r/7"))
    (completion,) = sample(full, ask(n=1))
    assert completion.weight_versions == (WeightSpan("r/7", 0, len(completion.token_ids)),)


def test_seeds_make_completions_repeatable_and_distinct(full):
    first, again = sample(full, ask(seed=1)), sample(full, ask(seed=1))
    neighbour = sample(full, ask(seed=2))
    assert [c.token_ids for c in first] == [c.token_ids for c in again]
    assert len({c.token_ids for c in (*first, *neighbour)}) == 8


def test_ends_are_told_apart(full):
    cut = sample(full, ask(max_tokens=2))
    assert {(c.finish_reason, len(c.token_ids)) for c in cut} == {("length", 2)}
    stopped = sample(full, ask(max_tokens=200, n=1, stop_token_ids=tuple(range(2, 64))))
    assert [(c.finish_reason, len(c.token_ids)) for c in stopped] == [("stop", 1)]


def test_bounds_and_stop_texts_are_heard(full, model):
    (greedy,) = sample(full, ask(n=1, temperature=0.0))
    for bound in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 0.999}):
        for bounded in sample(full, ask(n=2, **bound)):
            assert bounded.token_ids == greedy.token_ids
            # Of the distribution that is left: its one token has all of it.
            assert max(map(abs, bounded.logprobs_T)) < TOLERANCE
    third = greedy.token_ids[2]
    by_id, by_text = (
        sample(full, ask(n=1, temperature=0.0, **stop))[0]
        for stop in ({"stop_token_ids": (third,)}, {"stop_texts": (f"w{third}",)})
    )
    assert by_id.finish_reason == by_text.finish_reason == "stop"
    assert by_id.token_ids == greedy.token_ids[: greedy.token_ids.index(third) + 1]
    assert len(by_text.token_ids) <= len(by_id.token_ids)


def test_results_come_as_they_are_finished(full):
    """A short answer does not wait for a long one of the same call, and a refused request for none."""
    everything = tuple(range(2, 64))
    requests = [
        ask("long", max_tokens=100, n=1, seed=3),
        ask("short", n=1, stop_token_ids=everything),
        ask("bad", prompt=LONG * 2, n=1),
    ]
    arrivals = [place for found in full.submit(requests).arrivals() for place, _ in found]
    assert len(full.generate(requests)[0].completions[0].token_ids) > 1
    assert arrivals == [2, 1, 0]


def test_turns_keep_their_logprobs_over_syncs_and_are_read_from_their_ends(full, model):
    """Eight conversations of four turns: the weights change before the second and the third, and what the
    fourth continues is in the prefix cache."""
    full.sync(WeightUpdate(version="turn/0"))
    prompts, conversation, said = {i: LONG[: 40 + i] for i in range(8)}, full.open(), {}
    for turn in range(4):
        before = counts(full)
        if turn in (1, 2):
            perturb(model, 20 + turn)
            full.sync(weights(model, f"turn/{turn}"))
        requests = [
            replace(
                ask(f"{i}/{turn}", prompt=prompt, n=1, seed=8 * turn + i), follows=f"{i}/{turn - 1}"
            )
            for i, prompt in prompts.items()
        ]
        for request in requests:
            conversation.ask([request])
        results = {}
        while len(results) < 8:
            results |= {result.id: result.completions for result in conversation.arrivals(60.0)}
        known = sum(len(ids) // CPU_BLOCK_TOKENS * CPU_BLOCK_TOKENS for ids in said.values())
        for i, request in enumerate(requests):
            (completion,) = results[request.id]
            assert len(completion.token_ids) == len(completion.logprobs_T) > 0
            (span,) = completion.weight_versions
            assert span == (f"turn/{min(turn, 2)}", 0, len(completion.token_ids))
            assert worst(model, request.prompt_ids, [completion]) < TOLERANCE
            score = ScoreRequest(prompt_ids=request.prompt_ids, completion_ids=completion.token_ids)
            assert full.score([score])[0] == pytest.approx(completion.logprobs_T, abs=TOLERANCE)
            said[i] = (*request.prompt_ids, *completion.token_ids)
            prompts[i] = (*said[i], 7, 8, 9)
        if turn == 3:
            assert counts(full)["cached"] - before["cached"] == known
    conversation.close()


def counts(pool):
    return {name: float(pool.about()[name]) for name in ("prompt", "cached")}


def test_a_refused_request_fails_alone(full):
    good, bad = full.generate([ask("good"), ask("bad", prompt=LONG * 2, n=3)])
    assert [c.finish_reason for c in bad.completions] == ["failed"] * 3
    assert "longer than the maximum model length" in bad.completions[0].detail
    assert all(c.finish_reason != "failed" for c in good.completions)
    assert full.metrics.restarts == 0


def test_an_update_that_lacks_tensors_is_refused_and_sampling_waits_for_a_whole_one(full, model):
    tensors = {n: p.data for n, p in model.named_parameters() if "mlp" not in n}
    with pytest.raises(RunError, match="could not load the weights") as error:
        full.sync(WeightUpdate(version="part", tensors=tensors))
    assert "mlp" in str(error.value)
    with pytest.raises(RunError, match="different weights"):
        full.generate([ask()])
    full.sync(weights(model, "whole"))
    assert worst(model, (2, 3, 4), sample(full, ask())) < TOLERANCE


def test_adapters_are_swapped_and_taken_off(adapters, model, tmp_path):
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(
        model, LoraConfig(r=4, target_modules=list(LINEAR_LAYERS), init_lora_weights=False)
    ).eval()
    for version in (1, 2, 3):
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn_like(parameter) * 0.2)
        folder = tmp_path / str(version)
        wrapped.save_pretrained(folder)
        adapters.sync(WeightUpdate(version=f"lora/{version}", adapter=str(folder)))
        completions = sample(adapters, ask(prompt=LONG))
        assert worst(wrapped, LONG, completions) < TOLERANCE
        request = ScoreRequest(prompt_ids=LONG, completion_ids=completions[0].token_ids)
        want = reference(wrapped, LONG, completions[0].token_ids)
        assert torch.allclose(torch.tensor(adapters.score([request])[0]), want, atol=1e-5)
    assert worst(wrapped.unload(), LONG, completions) > 0.01
    adapters.sync(WeightUpdate(version="base"))
    assert worst(wrapped.unload(), LONG, sample(adapters, ask(prompt=LONG))) < TOLERANCE


def test_requests_of_one_call_have_increments_of_their_own(adapters, model, tmp_path):
    """Two increments of one adapter and the base, side by side; then the bank is taken off."""
    from peft import LoraConfig, PeftModel, get_peft_model

    layers = LoraConfig(r=8, target_modules=list(LINEAR_LAYERS), init_lora_weights=False)
    wrapped = get_peft_model(model, layers)
    wrapped.save_pretrained(tmp_path / "bank")
    wrapped.unload()
    bank = {"first": BankAdapter(str(tmp_path / "bank"), 2)}
    adapters.sync(WeightUpdate(version="bank/1", bank=bank))
    mixes = [(Increment("first", 0, 1.0),), (), (Increment("first", 1, 1.0),)]
    requests = [replace(ask(str(i)), mix=mix) for i, mix in enumerate(mixes)]
    for number, result in enumerate(adapters.generate(requests)):
        for other, mix in enumerate(mixes):
            alone = model
            if mix:
                folder = tmp_path / f"{number}-{other}"
                write_increment(tmp_path / "bank", mix[0].number, 2, folder)
                alone = PeftModel.from_pretrained(model, folder).eval()
            gap = worst(alone, (2, 3, 4), result.completions)
            if mix:
                alone.unload()
            assert gap < TOLERANCE if number == other else gap > 0.01
    adapters.sync(WeightUpdate(version="base"))
    assert worst(model, LONG, sample(adapters, ask(prompt=LONG))) < TOLERANCE


def test_an_adapter_engine_takes_no_full_weights(adapters, model):
    with pytest.raises(RunError) as error:
        adapters.sync(weights(model, "full"))
    assert "started for adapters" in str(error.value)


def test_an_unservable_model_is_refused_before_anything_starts(tiny_llama, tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        EnginePool(VLLMConfig(model=str(tmp_path), device="cpu"))
    with pytest.raises(UserError, match="lm_head"):
        VLLMConfig(model=str(tiny_llama), lora_targets=("q_proj", "lm_head"))


def test_the_environment_is_set_before_vllm_is_imported(tiny_llama):
    env = engine_environment(str(tiny_llama), "cpu")
    assert env["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert env["TORCH_COMPILE_DISABLE"] == env["HF_HUB_OFFLINE"] == env["OMP_NUM_THREADS"] == "1"
    assert "HF_HUB_OFFLINE" not in engine_environment("some/model", "cuda")
    assert "TORCH_COMPILE_DISABLE" not in engine_environment("some/model", "cuda")
    assert callable(partial(VLLMEngine, VLLMConfig(model=str(tiny_llama))))


def test_a_killed_engine_comes_back_with_the_current_weights(full, model):
    perturb(model, 9)
    full.sync(weights(model, "r/9"))
    (pid,) = full.pids
    os.kill(pid, signal.SIGKILL)
    completions = sample(full, ask())
    assert full.metrics.restarts == 1
    assert completions[0].weight_versions[0].version == "r/9"
    assert worst(model, (2, 3, 4), completions) < TOLERANCE

"""Shared parts of the integration tests: one small Ray cluster and one tiny tied model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from launch.cluster.local_ray.start import Info, start_patiently
from rollouts.errors import RunError
from tests.patience import patient

PLAIN_WORKERS = {"worker_niceness": 0, "prestart_worker_first_driver": False}
"""As `launch.cluster.cluster` starts Ray: no worker before it is asked for, and none behind other
processes.
"""
LONGEST_FIRST = (
    "test_nightly.py",
    "test_campaign.py",
    "test_multi_node.py",
    "test_engine_parity.py",
    "test_judge_command.py",
    "test_learner_group.py",
    "test_pool.py",
    "test_vllm_engine.py",
    "test_in_flight.py",
    "test_postgres.py",
    "test_ray_client.py",
    "test_reward_policy.py",
    "test_pool_in_flight.py",
    "test_judge.py",
)
"""Files that take a minute and more, the longest first: at the end no worker waits for another's."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files before the other integration tests."""
    here = Path(__file__).parent
    places = [place for place, item in enumerate(items) if item.path.parent == here]
    ranks = {name: rank for rank, name in enumerate(LONGEST_FIRST)}
    sorted_items = sorted(
        (items[place] for place in places),
        key=lambda item: ranks.get(item.path.name, len(ranks)),
    )
    for place, item in zip(places, sorted_items, strict=True):
        items[place] = item


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A private local cluster; actors are scheduled on it as if it had four CPUs."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    def init(limit_s: float, limits: Mapping[str, int]) -> Info:
        try:
            context = ray.init(
                address="local",
                num_cpus=4,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=600 << 20,
                _system_config=PLAIN_WORKERS | dict(limits),
            )
        except Exception as error:
            raise RunError(f"Ray did not start: {error}") from error
        return dict(context.address_info)

    # A busy machine is no failure: Ray's own limits are half a minute and less.
    start_patiently(init, patient(120.0))
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def travels_by_value(request: pytest.FixtureRequest, ray_cluster: None) -> Iterator[None]:
    """Send the definitions of a test file to actors by value, since they cannot import it."""
    import ray

    ray.cloudpickle.register_pickle_by_value(request.module)
    yield
    ray.cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 0.1 M parameters, head size 32, output layer tied to the embedding.

    Its weights are ten times wider than usual, so that its distributions are sharp and a wrong
    weight anywhere shows in every logprob.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_llama")
    words = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, 64)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder

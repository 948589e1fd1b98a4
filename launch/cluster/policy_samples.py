"""Answers of a model or snapshot to some prompts, sampled by one vLLM on a cluster of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from align.config.policy import PolicyConfig
from align.data.base_model import load_encoder, resolve_model
from launch.cluster.cluster import connect
from rewards.base import Sample
from rollouts.collect import check_lengths, collect
from rollouts.engines.vllm import VLLMConfig, resolve_device
from rollouts.errors import RunError, UserError
from rollouts.model_config import sizes_of
from rollouts.model_folder import check_model_folder
from rollouts.pool.pool import EnginePool
from rollouts.prompts import PromptEncoder
from rollouts.types import Prompt, RolloutGroup, Sampling


def sample_policy(
    model: str, prompts: Sequence[Prompt], group_size: int, sampling: Sampling, seed: int = 0
) -> list[Sample]:
    """Sample ``group_size`` answers to every prompt, as a reward is shown them; nothing runs on
    afterwards.

    Args:
        model: a folder in Hugging Face format such as a snapshot's, an id, or ``demo://digits``.

    Raises:
        UserError: the model cannot be served, or a prompt is too long for it.
        RunError: the engine failed, or answered nothing.
    """
    policy = PolicyConfig(model=model)
    folder = resolve_model(policy)
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            "holds an adapter and no whole model",
            where=str(folder),
            remedy="merge it first with keel export",
        )
    check_model_folder(folder, resolve_device("auto"))
    encoder = load_encoder(folder, policy)
    longest = max(len(encoder.encode(prompt)) for prompt in prompts)
    context = min(longest + sampling.max_tokens, _context(folder))
    check_lengths(prompts, encoder, sampling.max_tokens, context, "--policy")
    groups = _sampled(folder, context, prompts, group_size, encoder, sampling, seed)
    samples = [
        Sample(prompt=group.prompt, completion=completion)
        for group in groups
        for completion in group.completions_G
        if completion.finish_reason != "failed"
    ]
    if not samples:
        raise RunError(
            "the engine answered no prompt",
            where="--policy",
            cause=groups[0].completions_G[0].detail,
        )
    return samples


def _sampled(
    folder: Path,
    context: int,
    prompts: Sequence[Prompt],
    group_size: int,
    encoder: PromptEncoder,
    sampling: Sampling,
    seed: int,
) -> list[RolloutGroup]:
    config = VLLMConfig(model=str(folder.resolve()), max_model_len=context, seed=seed)
    sizes = [group_size] * len(prompts)
    with connect(num_engines=1):
        pool = EnginePool(config)
        try:
            return collect(pool, prompts, sizes, encoder, sampling, seed, policy=folder.name)
        finally:
            pool.close()


def _context(folder: Path) -> int:
    """Return the longest context a model was made for, in tokens."""
    return sizes_of(folder).context or 2**20

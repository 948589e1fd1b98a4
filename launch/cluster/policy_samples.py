"""Answers of a model or snapshot to some prompts, sampled by one engine on a cluster of its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from align.config.policy import PolicyConfig
from align.data.base_model import load_encoder, resolve_model
from launch.cluster.cluster import connect
from rewards.base import Sample
from rollouts.collect import check_lengths, collect
from rollouts.engines import ENGINES
from rollouts.engines.backend import EngineSpec
from rollouts.errors import RunError, UserError
from rollouts.machine.device import resolve_device
from rollouts.model_config import sizes_of
from rollouts.pool.pool import EnginePool
from rollouts.types import Prompt, Sampling


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
    spec = _engine_of(folder, seed)
    encoder = load_encoder(folder, policy)
    longest = max(len(encoder.encode(prompt)) for prompt in prompts)
    context = min(longest + sampling.max_tokens, sizes_of(folder).context or 2**20)
    check_lengths(prompts, encoder, sampling.max_tokens, context, "--policy")
    sizes = [group_size] * len(prompts)
    with connect(num_engines=1), closing(EnginePool(replace(spec, max_model_len=context))) as pool:
        groups = collect(
            pool, prompts, sizes, encoder, sampling, seed, policy=folder.resolve().name
        )
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


def _engine_of(folder: Path, seed: int) -> EngineSpec:
    """Choose the first backend that is installed and serves a folder.

    Raises:
        UserError: none does; the first one's reason.
    """
    device = resolve_device("auto")
    refusal: UserError | None = None
    for backend in ENGINES.values():
        spec = backend(model=str(folder.resolve()), seed=seed)
        try:
            backend.check_installed()
            spec.check_folder(device)
        except UserError as error:
            refusal = refusal or error
        else:
            return spec
    assert refusal is not None
    raise refusal

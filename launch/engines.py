"""From a campaign to running engines: a Ray cluster, a pool of vLLM actors on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from align.config import CampaignConfig
from align.parts import Observer, StartEngine
from launch.cluster import connect
from rollouts.engine import RolloutEngine
from rollouts.vllm_engine import LINEAR_LAYERS, VLLMConfig


@contextmanager
def engine_starter(
    address: str | None, observer: Observer, *, insecure: bool = False
) -> Iterator[StartEngine]:
    """Yields a function that starts a campaign's engines; the cluster ends with the context.

    The cluster is joined when the first engine is asked for: a campaign with nothing left to do, or
    with a mistake in it, never starts one.
    """
    with ExitStack() as stack:

        def start(config: CampaignConfig, model: Path, context: int) -> RolloutEngine:
            from rollouts.pool import EnginePool

            observer.note(f"starting Ray and {config.rollouts.engines} vLLM engine(s)")
            ranks = config.policy.ranks if config.policy.ranks > 1 else 0
            stack.enter_context(
                connect(address, num_engines=config.rollouts.engines + ranks, insecure=insecure)
            )
            return EnginePool(
                vllm_config(config, model, context),
                num_engines=config.rollouts.engines,
                start_deadline_s=config.rollouts.start_deadline_s,
                deadline_s=config.rollouts.deadline_s,
                max_restarts=config.rollouts.max_restarts,
            )

        yield start


def vllm_config(config: CampaignConfig, model: Path, context: int) -> VLLMConfig:
    """What one engine of this campaign is."""
    policy, engines = config.policy, config.rollouts
    adapter = policy.lora if policy.lora and policy.lora.serve == "adapter" else None
    return VLLMConfig(
        model=str(model.resolve()),
        dtype=policy.dtype,
        max_model_len=context,
        max_num_seqs=engines.max_num_seqs,
        kv_cache_mb=engines.kv_cache_mb,
        gpu_memory_utilization=engines.gpu_memory_utilization,
        lora_rank=adapter.rank if adapter else None,
        lora_targets=adapter.targets if adapter else LINEAR_LAYERS,
        trust_remote_code=policy.trust_remote_code,
        seed=config.seed,
    )

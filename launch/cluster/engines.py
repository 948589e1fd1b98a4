"""Engines of a campaign: a Ray cluster, and a pool of engine actors on it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from align.config.campaign import CampaignConfig
from align.learner.folder.sizes import synced_bytes
from align.learner.model.targets import served_targets
from align.round.session import Observer, StartEngine
from launch.cluster.cluster import CLIENT, Cluster, connect
from launch.cluster.control_watch import ControlWatch, watching
from launch.cluster.preflight import Demand, check_room, demands_of
from rollouts.engines import backend_named
from rollouts.engines.backend import LINEAR_LAYERS, EngineSpec
from rollouts.engines.protocol import RolloutEngine
from rollouts.machine.memory import shared_memory
from rollouts.machine.object_store import shortage
from rollouts.machine.variables import said_of

FREED_S = 60.0
"""Seconds that engines which were closed may take to give their room back."""


@contextmanager
def engine_starter(
    address: str | None, observer: Observer, *, insecure: bool = False, wait_s: float = 0.0
) -> Iterator[StartEngine]:
    """Yield a function that starts a campaign's engines; the cluster ends with the context.

    The cluster is joined when the first engine is asked for, and serves those that come after: a campaign
    with nothing left to do, or with a mistake in it, never starts one. What does not fit on it is told
    before an engine starts.

    Args:
        wait_s: how long nodes of the cluster may take to join, and other work on it to end.
    """
    with ExitStack() as stack:
        cluster: Cluster | None = None

        def start(config: CampaignConfig, model: Path, context: int) -> RolloutEngine:
            from rollouts.pool.pool import EnginePool

            nonlocal cluster
            also = "Ray and " if (is_first := cluster is None) else ""
            observer.note(
                f"starting {also}{config.rollouts.engines} {config.rollouts.backend} engine(s)"
            )
            demands = demands_of(config, gpus=False)
            weights, shared = synced_bytes(model, config.policy), shared_memory()
            if cluster is None:
                for sentence in said_of(config.rollouts.environment, os.environ):
                    observer.note(f"rollouts.environment: {sentence}")
                watch = stack.enter_context(watching(_watch_of(config, observer)))
                cluster = stack.enter_context(
                    connect(
                        address,
                        num_engines=math.ceil(sum(d.count * d.bundle["CPU"] for d in demands)),
                        custom=custom_of(demands),
                        insecure=insecure,
                        keep=config.rollouts.environment,
                        weights=weights,
                        note=observer.note,
                    )
                )
                if not cluster.address.startswith(CLIENT):
                    watch.begin(cluster.address)
            if cluster.local and (slow := shortage(weights, shared)) is not None:
                observer.note(f"warning: {slow}")
            # Engines that were closed give their room back a moment later.
            patience_s = wait_s if is_first else max(wait_s, FREED_S)
            check_room(config, wait_s=patience_s, note=observer.note)
            return EnginePool(
                engine_spec(config, model, context),
                num_engines=config.rollouts.engines,
                bundle=config.rollouts.resources.bundle(gpus=cluster_has_gpus()),
                start_deadline_s=config.rollouts.start_deadline_s,
                deadline_s=config.rollouts.deadline_s,
                max_restarts=config.rollouts.max_restarts,
                in_flight=any(spec.sampling.in_flight for spec in config.rounds),
                note=observer.note,
                silence_s=config.waits.silence_s,
            )

        yield start


def _watch_of(config: CampaignConfig, observer: Observer) -> ControlWatch:
    """Make the watch over the cluster's control service, with the waits of a campaign."""
    waits = config.waits
    return ControlWatch(limit_s=waits.control_s, silence_s=waits.silence_s, note=observer.note)


@contextmanager
def in_process_starter(observer: Observer) -> Iterator[StartEngine]:
    """Yield a function that starts a campaign's one engine in this process, without a cluster."""

    def start(config: CampaignConfig, model: Path, context: int) -> RolloutEngine:
        observer.note(f"starting 1 {config.rollouts.backend} engine in this process")
        return engine_spec(config, model, context).start()

    yield start


def custom_of(demands: Sequence[Demand]) -> dict[str, float]:
    """Sum the resources of other names than Ray's own that a cluster of one node needs."""
    total: dict[str, float] = {}
    for demand in demands:
        for name, amount in demand.bundle.items():
            if name not in ("CPU", "GPU"):
                total[name] = total.get(name, 0.0) + amount * demand.count
    return total


def cluster_has_gpus() -> bool:
    """Tell if the cluster that this process is connected to has GPUs."""
    import ray

    return bool(ray.cluster_resources().get("GPU", 0) >= 1)


def engine_spec(config: CampaignConfig, model: Path, context: int) -> EngineSpec:
    """Describe one engine of this campaign."""
    policy, engines = config.policy, config.rollouts
    adapter = policy.lora if policy.serves_adapters else None
    return backend_named(engines.backend)(
        model=str(model.resolve()),
        dtype=policy.dtype if engines.dtype == "auto" else engines.dtype,
        max_model_len=context,
        max_num_seqs=engines.max_num_seqs,
        kv_cache_mb=engines.kv_cache_mb,
        gpu_memory_utilization=engines.gpu_memory_utilization,
        threads=engines.threads,
        division=engines.division,
        quantization=engines.quantization,
        weight_transfer=engines.weight_transfer,
        lora_rank=adapter.rank if adapter else None,
        lora_targets=served_targets(model, policy) if adapter else LINEAR_LAYERS,
        bank_increments=policy.bank.keys * len(config.rounds) if policy.bank else None,
        trust_remote_code=policy.trust_remote_code,
        seed=config.seed,
    )

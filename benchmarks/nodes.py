"""Claim: engines on 2 and 3 nodes give at least 90% of 2 and 3 times the throughput of one node.

The raylets and the pool with its placement group are real; engines sleep as long as a GPU would decode. So
the measurement is of the time that Keel and Ray add (splitting, sending, collecting, and a sync of weights
to every node between two steps), not of an engine's speed. Every node gets the same work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

from benchmarks.common import middle, parser, prepare, save, show, spread, verdict

REQUIRED = 0.9
"""Smallest share of linear throughput."""
SLOTS = 64
"""Number of sequences that an engine decodes at a time."""
TOKENS = 64
WEIGHTS = 3_000_000
"""Number of float32 parameters in a sync."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Work of one node in a step."""

    engines: int
    prompts: int
    group: int
    wave_s: float
    """Seconds that an engine takes to decode a full batch."""


def main() -> None:
    """Measure every number of nodes and print."""
    prepare()
    options = parser("Throughput of simulated engines on several nodes.")
    options.add_argument("--nodes", type=int, nargs="*", default=[1, 2, 3])
    options.add_argument("--engines", type=int, default=2, help="on each node")
    options.add_argument("--prompts", type=int, default=32, help="of a step, for each node")
    options.add_argument("--group", type=int, default=16, help="completions of a prompt")
    options.add_argument("--wave-s", type=float, default=1.0, help="to decode a full batch")
    options.add_argument("--steps", type=int, default=8)
    args = options.parse_args()
    if args.quick:
        args.steps, args.wave_s = 2, 0.2
    work = Work(engines=args.engines, prompts=args.prompts, group=args.group, wave_s=args.wave_s)
    data = []
    with cluster() as ray_cluster:
        for count in sorted(args.nodes):
            while len(ray_cluster.worker_nodes) < count:
                ray_cluster.add_node(num_cpus=work.engines, resources={"engine": work.engines})
            data.append(measure(count, work, args.steps))
    report(data, work)
    save(args.json, "nodes", args, data)


def measure(nodes: int, work: Work, steps: int) -> dict[str, Any]:
    """Measure the seconds of sampling and of sync in every step on ``nodes`` nodes."""
    import numpy as np

    from rollouts.engines.protocol import SampleRequest, WeightUpdate
    from rollouts.engines.vllm import VLLMConfig
    from rollouts.pool.pool import EnginePool
    from rollouts.types import Sampling

    weights = {"weight": np.zeros(WEIGHTS, dtype=np.float32)}
    pool = EnginePool(
        VLLMConfig(model="simulated", max_num_seqs=SLOTS, device="cpu"),
        num_engines=nodes * work.engines,
        bundle={"CPU": 1, "engine": 1},
        engine_factory=partial(sleeper, work.wave_s),
    )
    try:
        pool.wait_ready()
        hosts = len(set(pool_nodes()))
        assert hosts == nodes, f"engines are on {hosts} nodes"
        pool.sync(WeightUpdate(version="warm-up", tensors=weights))
        sampled, synced = [], []
        for step in range(steps):
            requests = [
                SampleRequest(
                    id=f"{step}/{i}", prompt_ids=(1, 2, 3), n=work.group, seed=i,
                    sampling=Sampling(max_tokens=TOKENS),
                )
                for i in range(nodes * work.prompts)
            ]  # fmt: skip
            started = time.perf_counter()
            results = pool.generate(requests)
            sampled.append(time.perf_counter() - started)
            assert sum(len(r.completions) for r in results) == len(requests) * work.group
            synced.append(pool.sync(WeightUpdate(version=f"{step}", tensors=weights)).seconds)
    finally:
        pool.close()
    completions = nodes * work.prompts * work.group
    seconds = [a + b for a, b in zip(sampled, synced, strict=True)]
    rates = [completions / s for s in seconds]
    return {"nodes": nodes, "sampled_s": sampled, "synced_s": synced, "completions_per_s": rates}


def sleeper(wave_s: float) -> Any:
    """Build an engine that decodes a full batch in ``wave_s`` seconds; called in its actor."""
    from rollouts.engines.protocol import SampleRequest, SampleResult, SyncReport, WeightUpdate
    from rollouts.engines.scripted import ScriptedEngine

    class Sleeper(ScriptedEngine):
        def generate(self, requests: Sequence[SampleRequest]) -> list[SampleResult]:
            self.requests.clear()
            time.sleep(wave_s * ceil(sum(r.n for r in requests) / SLOTS))
            return super().generate(requests)

        def sync(self, update: WeightUpdate) -> SyncReport:
            self.updates.clear()  # The engine would keep all updates.
            return super().sync(update)

    return Sleeper(lambda prompt_ids, seed: ([5] * TOKENS, [-0.5] * TOKENS))


@contextmanager
def cluster() -> Iterator[Any]:
    """Start a cluster with a head that runs nothing, and stop it at the end; nodes are added later."""
    import logging

    import ray
    from ray.cluster_utils import Cluster

    from launch.cluster.cluster import PACKAGE_ROOT

    os.environ["PYTHONPATH"] = str(PACKAGE_ROOT)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray_cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        ray.init(ray_cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield ray_cluster
    finally:
        ray.shutdown()
        ray_cluster.shutdown()


def pool_nodes() -> Iterator[str]:
    """Yield the node of every bundle of the pool's placement group."""
    import ray

    for group in ray.util.placement_group_table().values():
        if group["state"] == "CREATED":
            yield from group["bundles_to_node_id"].values()


def report(data: Sequence[dict[str, Any]], work: Work) -> None:
    """Print the throughput of each number of nodes, as a share of that number times one node's."""
    single_rate = middle(data[0]["completions_per_s"]) / data[0]["nodes"]
    engine_s = work.wave_s * ceil(work.prompts * work.group / work.engines / SLOTS)
    rows, passed = [], True
    for figures in data:
        rate = middle(figures["completions_per_s"])
        share = rate / (single_rate * figures["nodes"])
        passed &= share >= REQUIRED
        rows.append(
            [
                str(figures["nodes"]),
                spread(figures["completions_per_s"], 0),
                f"{100 * share:.1f}%",
                spread(figures["sampled_s"]),
                spread(figures["synced_s"]),
            ]
        )
    show(
        "Simulated engines on several nodes",
        ["nodes", "completions/s", "of linear", "sampling, s", "sync of 12 MB, s"],
        rows,
        f"The engines alone take {engine_s:g} s a step.",
        f"At least {100 * REQUIRED:.0f}% of linear: {verdict(passed)}",
    )


if __name__ == "__main__":
    main()

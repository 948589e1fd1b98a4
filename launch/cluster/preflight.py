"""Check that a campaign's processes fit on a cluster, and if not, which one, where, and why.

Asked before anything is started: a process that fits nowhere would otherwise wait until its deadline
and end with no more than that. Reading the cluster is apart from the sums, which are exact for one group
that must be together and processes that are all alike. Processes of several kinds are held against the
nodes kind by kind and all together against their sum, so what fits is never refused.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from align.config.campaign import CampaignConfig
from align.config.episodes.placement import placed_workers
from rollouts.errors import UserError
from rollouts.pool.placement import Bundle, bundles_of, told

RETRY_S = 2.0
LOOK_S = 60.0
"""Seconds a node may take to tell what is free."""
HIDDEN = ("node:", "memory", "object_store_memory", "accelerator_type:")
"""Resources that Ray keeps for itself, by prefix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterNode:
    """Node of a cluster."""

    name: str
    total: Bundle
    free: Bundle


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """Processes that are all alike."""

    what: str
    """Name of one such process, such as ``engine``."""
    bundle: Bundle
    count: int
    together: bool = False
    """True if all of them must be on one node."""

    def __str__(self) -> str:
        suffix = ", all on one node" if self.together and self.count > 1 else ""
        return f"{self.count} x {self.what} ({told(self.bundle)} each{suffix})"


def demands_of(config: CampaignConfig, *, gpus: bool) -> list[Demand]:
    """List what a campaign asks of a cluster; a learner that is one process lives in the driver.

    Args:
        gpus: whether the cluster has any.
    """
    policy, engines = config.policy, config.rollouts
    bundles = bundles_of(engines.division, engines.resources.bundle(gpus=gpus))
    what = "engine" if len(bundles) == 1 else "engine worker"
    engine = Demand(what=what, bundle=bundles[0], count=engines.engines * len(bundles))
    workers = [
        Demand(what="environment", bundle=placed.resources.bundle(gpus=False), count=placed.num)
        for placed in placed_workers(config)
    ]
    if policy.ranks == 1:
        return [engine, *workers]
    rank = policy.resources.bundle(gpus=gpus)
    ranks = Demand(what="learner rank", bundle=rank, count=policy.ranks, together=True)
    return [ranks, engine, *workers]


def problems(nodes: Sequence[ClusterNode], demands: Sequence[Demand]) -> list[str]:
    """Explain why the demands never fit on these nodes, however idle they are; empty when they do."""
    reasons = []
    for demand in demands:
        # One process, or one group that stays together, against the node that has most.
        times = demand.count if demand.together else 1
        whole = f"{times} {demand.what}s on one node" if times > 1 else f"one {demand.what}"
        for name, amount in demand.bundle.items():
            most = max((node.total.get(name, 0.0) for node in nodes), default=0.0)
            if most == 0.0:
                reasons.append(f"{whole} asks for {name}, which no node has")
            elif amount * times > most:
                asked_for = f"{amount * times:g} {name}"
                reasons.append(f"{whole} asks for {asked_for}; the largest node has {most:g}")
    return reasons or _too_many([node.total for node in nodes], demands)


def shortages(nodes: Sequence[ClusterNode], demands: Sequence[Demand]) -> list[str]:
    """Explain why the demands do not fit at this moment, for what others have taken."""
    return _too_many([node.free for node in nodes], demands)


def _too_many(rooms: Sequence[Bundle], demands: Sequence[Demand]) -> list[str]:
    """Place the group on each node in turn, and report how many of the others fit then."""
    group = next((demand for demand in demands if demand.together), None)
    singles = [demand for demand in demands if not demand.together]
    layouts = [list(rooms)]
    if group is not None:
        layouts = []
        for index, room in enumerate(rooms):
            if _fits(room, group.bundle) >= group.count:
                group_total = {name: group.count * amount for name, amount in group.bundle.items()}
                left = {name: amount - group_total.get(name, 0.0) for name, amount in room.items()}
                layouts.append([*rooms[:index], left, *rooms[index + 1 :]])
    if not layouts:
        return [f"no single node has room for {group}"]
    beside = f" beside {group}" if group is not None else ""
    reasons = []
    for single in singles:
        most = max(sum(_fits(room, single.bundle) for room in layout) for layout in layouts)
        if most < single.count:
            reasons.append(f"there is room for {most} of {single}{beside}")
    return reasons or _too_much(rooms, demands)


def _too_much(rooms: Sequence[Bundle], demands: Sequence[Demand]) -> list[str]:
    """Hold processes of several kinds, each of which fits alone, against all nodes together."""
    reasons = []
    for name in dict.fromkeys(name for demand in demands for name in demand.bundle):
        needed = sum(demand.count * demand.bundle.get(name, 0.0) for demand in demands)
        total = sum(room.get(name, 0.0) for room in rooms)
        if needed > total + 1e-4:
            asking = ", ".join(str(demand) for demand in demands if name in demand.bundle)
            reasons.append(f"{asking} ask for {needed:g} {name} together, and there are {total:g}")
    return reasons


def _fits(room: Bundle, bundle: Bundle) -> int:
    """Count how many of the bundle fit; Ray counts in ten-thousandths."""
    return min(
        (math.floor(room.get(name, 0.0) / amount + 1e-4) for name, amount in bundle.items()),
        default=0,
    )


def node_table(nodes: Sequence[ClusterNode], demands: Sequence[Demand]) -> str:
    """Format what each node has free of what it has, and how many of each process alone would fit on
    it."""
    names = list(dict.fromkeys(name for demand in demands for name in demand.bundle))
    head = ["node", *names, *(f"{demand.what}s" for demand in demands)]
    rows = [
        [
            node.name,
            *(f"{node.free.get(n, 0):g} of {node.total.get(n, 0):g}" for n in names),
            *(str(_fits(node.free, demand.bundle)) for demand in demands),
        ]
        for node in nodes
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)) for r in [head, *rows]
    ]
    return "\n".join(f"    {line.rstrip()}" for line in lines)


def check_room(
    config: CampaignConfig,
    *,
    wait_s: float = 0.0,
    look: Callable[[], list[ClusterNode]] | None = None,
    note: Callable[[str], None] = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Raise `UserError` unless the campaign fits on the cluster within ``wait_s`` seconds.

    Args:
        wait_s: how long nodes may take to join, and other work to end.
        look: the nodes as they are; None asks Ray, which must be running.
        note: told once what is waited for.
    """
    look = look or cluster_nodes
    deadline = time.monotonic() + wait_s
    waited = False
    while True:
        nodes = look()
        demands = demands_of(config, gpus=any(node.total.get("GPU", 0) for node in nodes))
        lasting = problems(nodes, demands)
        if not (reasons := lasting or shortages(nodes, demands)):
            return
        if time.monotonic() >= deadline:
            break
        if not waited:
            note(f"waiting up to {wait_s:g} s for room on the cluster: {'; '.join(reasons)}")
            waited = True
        sleep(RETRY_S)
    after = f" after {wait_s:g} s" if wait_s else ""
    demand_lines = "\n".join(f"    asked: {demand}" for demand in demands)
    raise UserError(
        f"the campaign does not fit on the cluster{after}: {'; '.join(reasons)}\n"
        f"{demand_lines}\n{node_table(nodes, demands)}",
        where="--address",
        cause=None if lasting else "other work has taken the room",
        remedy="lower rollouts.engines, policy.ranks, episode.workers or their resources, add nodes, or "
        "give nodes that are about to join and work that is about to end time with --wait SECONDS",
    )


def cluster_nodes() -> list[ClusterNode]:
    """List the nodes of the cluster that this process is connected to."""
    import ray

    if ray.util.client.ray.is_connected():
        # A driver that is on no node sees no node's resources: one of the nodes looks for it.
        free = ray.get(ray.remote(num_cpus=0)(_free_by_node).remote(), timeout=LOOK_S)
    else:
        free = _free_by_node()
    return [
        ClusterNode(
            name=f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})",
            total=_shown(node["Resources"]),
            free=_shown(free.get(node["NodeID"], {})),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def _free_by_node() -> dict[str, dict[str, float]]:
    """Return the resources that nobody has taken, by the node's id."""
    from ray._private.state import available_resources_per_node

    resources: dict[str, dict[str, float]] = available_resources_per_node()
    return resources


def _shown(resources: Mapping[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in resources.items() if not name.startswith(HIDDEN)}

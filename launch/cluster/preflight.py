"""Check that a campaign's processes fit on a cluster, and if not, which one, where, and why.

Asked before anything is started: a process that fits nowhere would otherwise wait until its deadline
and end with no more than that. Reading the cluster is apart from the sums, which are exact for groups of
one kind, each on a node of its own, and processes that are all alike. Processes of several kinds are held
against the nodes kind by kind and all together against their sum, so what fits is never refused.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from align.config.campaign import CampaignConfig
from align.config.episodes.placement import placed_workers
from rollouts.errors import UserError
from rollouts.pool.placement import Bundle, bundles_of, free_resources, shown, told

RETRY_S = 2.0


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
    nodes: int | None = None
    """Number of nodes that they must fill evenly; None: each may be anywhere."""

    @property
    def per_node(self) -> int:
        """Number of processes that must be on one node together."""
        return 1 if self.nodes is None else self.count // self.nodes

    def __str__(self) -> str:
        suffix = ""
        if self.nodes is not None and self.count > 1:
            together = f"{self.per_node} on each of {self.nodes} nodes"
            suffix = ", all on one node" if self.nodes == 1 else f", {together}"
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
    ranks = Demand(what="learner rank", bundle=rank, count=policy.ranks, nodes=policy.nodes)
    return [ranks, engine, *workers]


def problems(nodes: Sequence[ClusterNode], demands: Sequence[Demand]) -> list[str]:
    """Explain why the demands never fit on these nodes, however idle they are; empty when they do."""
    reasons = []
    for demand in demands:
        # One process, or one group that stays together, against the node that has most.
        times = demand.per_node
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
    """Place the groups where they cost the others least, and report how many of these fit then."""
    grouped = next((demand for demand in demands if demand.nodes is not None), None)
    count = 0 if grouped is None or grouped.nodes is None else grouped.nodes
    after = [room if grouped is None else _less(room, grouped) for room in rooms]
    able = [left is not None for left in after]
    if grouped is not None and sum(able) < count:
        single = count == 1
        where = "no single node has" if single else f"{sum(able)} of {count} nodes have"
        whom = str(grouped) if single else f"{grouped.per_node} each of {grouped}"
        return [f"{where} room for {whom}"]
    beside = f" beside {grouped}" if grouped is not None else ""
    reasons = []
    for demand in demands:
        if demand is grouped:
            continue
        fits = [_fits(room, demand.bundle) for room in rooms]
        losses = [
            fit - _fits(left, demand.bundle)
            for fit, left in zip(fits, after, strict=True)
            if left is not None
        ]
        most = sum(fits) - sum(sorted(losses)[:count])
        if most < demand.count:
            reasons.append(f"there is room for {most} of {demand}{beside}")
    return reasons or _too_much(rooms, demands)


def _less(room: Bundle, group: Demand) -> Bundle | None:
    """Return what one of the groups leaves of a node's room; None if it has not enough."""
    if _fits(room, group.bundle) < group.per_node:
        return None
    return {
        name: amount - group.per_node * group.bundle.get(name, 0.0) for name, amount in room.items()
    }


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

    free = free_resources()
    return [
        ClusterNode(
            name=f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})",
            total=shown(node["Resources"]),
            free=free.get(node["NodeID"], {}),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]

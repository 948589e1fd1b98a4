"""Room on a Ray cluster, reserved before anything is started in it: a placement group.

Once it is reserved nobody else gets it, and when a node is lost Ray looks for the same room on the
nodes that are left, or on the next one to come. Ray must be running.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rollouts.engines.division import DeviceDivision

Bundle = Mapping[str, float]
"""Resources that one process takes, as Ray names them: ``{"CPU": 1, "GPU": 1, "a100": 1}``."""
HIDDEN = ("node:", "memory", "object_store_memory", "accelerator_type:", "bundle")
"""Resources that Ray keeps for itself, by prefix."""
LOOK_S = 60.0
"""Seconds that a node may take to tell what is free."""


class Room:
    """One bundle for each process of a group, or for the processes of a node.

    Args:
        bundles: what each takes.
        strategy: ``PACK`` on as few nodes as there is room on, ``STRICT_SPREAD`` each on a node of its own.
    """

    def __init__(
        self, bundles: Sequence[Bundle], strategy: Literal["PACK", "STRICT_SPREAD"] = "PACK"
    ) -> None:
        import ray

        self._bundles = tuple(bundles)
        self._group: Any = ray.util.placement_group([dict(b) for b in bundles], strategy=strategy)

    def wait(self, seconds: float) -> bool:
        """Wait at most ``seconds`` until there is room for every process; return False if there is
        none."""
        return bool(self._group.wait(seconds))

    def options(self, index: int, part: Bundle | None = None) -> dict[str, Any]:
        """Return the options of an actor in the bundle ``index``.

        Args:
            part: what the actor takes of the bundle; None: all of it.
        """
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        resources = dict(self._bundles[index] if part is None else part)
        return {
            "num_cpus": resources.pop("CPU", 0),
            "num_gpus": resources.pop("GPU", 0),
            "resources": resources,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=index
            ),
        }

    def leader_options(self) -> dict[str, Any]:
        """Return the options of an actor that computes nothing itself and whose Ray workers take the room:
        it finds the placement group as its own, and leaves all GPUs in it to them."""
        options = self.options(0)
        return {**options, "num_cpus": 0, "num_gpus": 0, "resources": {}}

    def release(self) -> None:
        """Give the room back; whatever still runs in it is killed. Safe after Ray has gone."""
        import ray

        if ray.is_initialized():
            ray.util.remove_placement_group(self._group)


def free_resources() -> dict[str, Bundle]:
    """Return the resources that nobody has taken, by the node's id; Ray's own are left out."""
    import ray

    # A driver that is on no node sees no node's resources: one of the nodes looks for it.
    if ray.util.client.ray.is_connected():
        free = ray.get(ray.remote(num_cpus=0)(_free).remote(), timeout=LOOK_S)
    else:
        free = _free()
    return {node: shown(resources) for node, resources in free.items()}


def free_by_node() -> list[str]:
    """Say of each node what nobody has taken."""
    import ray

    free = free_resources()
    return [
        f"{told(free.get(node['NodeID'], {})) or 'nothing'} free at {node['NodeManagerAddress']}"
        for node in ray.nodes()
        if node["Alive"]
    ]


def shown(resources: Bundle) -> Bundle:
    """Return resources without those that Ray keeps for itself."""
    return {name: amount for name, amount in resources.items() if not name.startswith(HIDDEN)}


def _free() -> dict[str, Bundle]:
    from ray._private.state import available_resources_per_node

    resources: dict[str, Bundle] = available_resources_per_node()
    return resources


def own_node() -> str | None:
    """Return Ray's id of the node that this process is on; None if it is on none."""
    import ray

    if ray.util.client.ray.is_connected():
        return None
    node: str = ray.get_runtime_context().get_node_id()
    return node


def bundles_of(division: DeviceDivision, bundle: Bundle) -> list[Bundle]:
    """Return the bundles of one engine whose devices take ``bundle`` each.

    Processes of its own share one bundle, and Ray workers have one each.

    >>> bundles_of(DeviceDivision(tensor=2), {"CPU": 1, "GPU": 1})
    [{'CPU': 2, 'GPU': 2}]
    >>> bundles_of(DeviceDivision(tensor=2, executor="ray"), {"CPU": 1, "GPU": 1})
    [{'CPU': 1, 'GPU': 1}, {'CPU': 1, 'GPU': 1}]
    """
    number = division.num_devices
    if division.executor == "ray":
        return [bundle] * number
    return [{name: amount * number for name, amount in bundle.items()}]


def reachable_host() -> str:
    """Return the address by which processes of the cluster reach this one; on one machine its loopback."""
    import ray

    return "127.0.0.1" if on_one_machine() else str(ray.util.get_node_ip_address())


def on_one_machine() -> bool:
    """Return True if this process and every node of the cluster are on one machine, and share its disk."""
    import ray

    if ray.util.client.ray.is_connected():
        return False
    return sum(bool(node["Alive"]) for node in ray.nodes()) == 1


def told(bundle: Bundle) -> str:
    """Format a bundle for a message.

    >>> told({"CPU": 2.0, "a100": 0.5})
    '2 CPU, 0.5 a100'
    """
    return ", ".join(f"{amount:g} {name}" for name, amount in bundle.items())

"""Verbs of vLLM's weight transfer, called on all engines of a pool at once.

It is what vLLM's trainer side calls a `VLLMWeightSyncClient`: the learner drives engines by it, wherever
its first rank is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

TransferVerb = Literal["init", "start", "update", "finish"]


class EngineClient:
    """Engines that take the same weights.

    Args:
        actors: their Ray actors.
        workers_each: devices of each engine.
        version: name of the weights that are sent; set before each of them.
    """

    def __init__(self, actors: Sequence[Any], workers_each: int, version: str = "") -> None:
        self._actors, self._workers_each, self.version = actors, workers_each, version

    @property
    def num_workers(self) -> int:
        """Number of workers of all engines."""
        return len(self._actors) * self._workers_each

    def open(self, info: Mapping[str, Any]) -> None:
        """Let every worker join the sender's group, where it has a rank of its own."""
        first = 1
        calls = []
        for actor in self._actors:
            calls.append(actor.transfer.remote("init", {**info, "rank_offset": first}, ""))
            first += self._workers_each
        self._wait(calls)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Let the engines join as vLLM's trainer side tells them."""
        if "rank_offset" in init_info:
            self.open(init_info)
        else:
            self._all("init", init_info)

    def start_weight_update(self) -> None:
        """Let every layer of all engines take new weights."""
        self._all("start", {})

    def update_weights(self, update_info: Any) -> None:
        """Let all engines take what is sent."""
        self._all("update", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Let all engines serve the new weights, under their version."""
        self._all("finish", {}, weight_version or self.version)

    def _all(self, verb: TransferVerb, info: Any, version: str = "") -> None:
        self._wait([actor.transfer.remote(verb, info, version) for actor in self._actors])

    def _wait(self, calls: Sequence[Any]) -> None:
        """Wait for all of them; the first failure is raised at once."""
        import ray

        waiting = list(calls)
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            ray.get(done)

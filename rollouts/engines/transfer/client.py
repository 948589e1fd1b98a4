"""Verbs of vLLM's weight transfer, called on all engines of a pool at once.

It is what vLLM's trainer side calls a `VLLMWeightSyncClient`: the learner drives engines by it, wherever
its first rank is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

TransferVerb = Literal["init", "start", "update", "finish"]


class EngineClient:
    """Engines that take the same weights.

    Args:
        actors: their Ray actors.
        workers_each: devices of each engine.
        timeout_s: seconds that all engines together may take to do a verb.
        version: name of the weights that are sent; set before each of them.
    """

    def __init__(
        self, actors: Sequence[Any], workers_each: int, *, timeout_s: float, version: str = ""
    ) -> None:
        self._actors, self._workers_each = actors, workers_each
        self._timeout_s, self.version = timeout_s, version

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
        self._wait(calls, "init")

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
        self._wait([actor.transfer.remote(verb, info, version) for actor in self._actors], verb)

    def _wait(self, calls: Sequence[Any], verb: TransferVerb) -> None:
        """Wait for all engines; the first failure is raised at once.

        Raises:
            TimeoutError: some did not answer in time.
        """
        import ray

        waiting, deadline = list(calls), time.monotonic() + self._timeout_s
        while waiting:
            left_s = max(0.0, deadline - time.monotonic())
            done, waiting = ray.wait(waiting, num_returns=1, timeout=left_s)
            if not done:
                raise TimeoutError(
                    f"{len(waiting)} of {len(calls)} engines did not {verb} a weight update within "
                    f"{self._timeout_s:g} s"
                )
            ray.get(done)

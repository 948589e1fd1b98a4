"""Conversation with all engines of a pool."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rollouts.engines.protocol import SampleRequest, SampleResult
from rollouts.pool.exchange import Caller

if TYPE_CHECKING:
    from rollouts.pool.pool import EnginePool

BUSY_S = 0.01
"""Seconds between two looks where every engine is busy with something else."""


class PoolConversation:
    """Requests of one caller to a pool; see `Conversation`.

    Another thread than the caller's may sync the pool, or ask it for something else, meanwhile.
    """

    def __init__(self, pool: EnginePool) -> None:
        self._pool, self._caller = pool, Caller()

    def ask(self, requests: Sequence[SampleRequest]) -> None:
        """Send the requests to engines that have room, and keep the others until one has.

        Raises:
            ValueError: a request of the same id is under way.
            RunError: the pool is closed, or an engine failed for good.
        """
        with self._pool.lock:
            self._check_open()
            self._pool.exchange.add(requests, self._caller)
            self._pool.exchange_turns()

    def arrivals(self, timeout_s: float) -> list[SampleResult]:
        """Return what is answered, and wait at most ``timeout_s`` for the first of it.

        Raises:
            RunError: the pool is closed, or an engine failed for good.
        """
        import ray

        deadline = time.monotonic() + timeout_s
        while True:
            with self._pool.lock:
                self._check_open()
                if self._caller.under_way:
                    self._pool.exchange_turns()
                if self._caller.answers or not self._caller.under_way:
                    results, self._caller.answers = self._caller.answers, []
                    return results
                refs = list(self._pool.exchange.refs())
                seconds_left = self._pool.exchange.seconds_left()
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                return []
            # Others may have the pool while this one sleeps.
            pause_s = min(remaining_s, seconds_left)
            if refs:
                ray.wait(refs, num_returns=1, timeout=pause_s)
            else:
                time.sleep(min(pause_s, BUSY_S))

    def close(self) -> None:
        """Forget what is not answered; engines finish what they have begun."""
        with self._pool.lock:
            self._pool.exchange.forget(self._caller)

    def _check_open(self) -> None:
        if self._caller.failure is not None:
            raise self._caller.failure

"""Process on a node that holds environments and their workers, in a Ray actor."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Literal, NamedTuple, Protocol

from rewards.environments.describe import DescribedEnvironment
from rewards.environments.environments import WorkerEnvironments
from rewards.environments.plan import EnvironmentsPlan
from rollouts.episodes.environment import ToolCall
from rollouts.errors import KeelError, RunError, first_line
from rollouts.types import Message, Prompt

MOST_CALLS = 1000
"""Most requests that wait in one actor at once."""

Request = Literal["start", "open", "call", "close", "drop"]


class HostAnswer(NamedTuple):
    """Answer of an actor to one request."""

    value: Any
    failure: str | None
    """Reason for which the episode is over; None: it goes on."""
    metrics: Mapping[str, float]
    """Counts of the actor's environments so far."""


class EnvironmentHost(Protocol):
    """Process that holds environments, as the driver asks it."""

    def ask(self, request: Request, *arguments: Any) -> Future[HostAnswer]:
        """Send a request to `EnvironmentActor`; the future raises where the process is lost."""
        ...

    def end(self, patience_s: float) -> None:
        """End the process, by force after ``patience_s`` seconds."""
        ...


class EnvironmentActor:
    """Environments of one plan beside their workers; a request each waits for them as on the driver."""

    def __init__(
        self, plan: EnvironmentsPlan, described: Mapping[str, DescribedEnvironment]
    ) -> None:
        self._environments = WorkerEnvironments(plan, described=described)

    async def start(self, variables: Mapping[str, str]) -> HostAnswer:
        """Take variables that the campaign grants; those of the node itself come first."""
        for name, value in variables.items():
            os.environ.setdefault(name, value)
        return HostAnswer(None, None, {})

    async def open(self, key: str, prompt: Prompt) -> HostAnswer:
        """See `Environments.open`."""
        return await self._answer(asyncio.wrap_future(self._environments.open(key, prompt)))

    async def call(self, key: str, calls: Sequence[ToolCall]) -> HostAnswer:
        """See `Environments.call`."""
        return await self._answer(asyncio.wrap_future(self._environments.call(key, calls)))

    async def close(self, key: str, messages: Sequence[Message]) -> HostAnswer:
        """See `Environments.close`."""
        return await self._answer(asyncio.wrap_future(self._environments.close(key, messages)))

    async def drop(self, key: str) -> HostAnswer:
        """See `Environments.drop`."""
        self._environments.drop(key)
        return HostAnswer(None, None, self._environments.metrics)

    async def end(self) -> None:
        """End the workers, with all that their code has started."""
        await asyncio.to_thread(self._environments.shutdown)

    async def _answer(self, answer: Awaitable[Any]) -> HostAnswer:
        value, failure = None, None
        try:
            value = await answer
        except KeelError as error:
            failure = first_line(error)
        return HostAnswer(value, failure, self._environments.metrics)


class ActorHost:
    """An `EnvironmentActor` on a node that Ray chooses."""

    def __init__(
        self, plan: EnvironmentsPlan, described: Mapping[str, DescribedEnvironment]
    ) -> None:
        """Ask Ray for the actor; it starts as soon as a node has room.

        Raises:
            RunError: this process is connected to no cluster.
        """
        import ray

        if not ray.is_initialized():
            raise RunError(
                "there is no Ray cluster to place environments on",
                where=plan.place("episode.resources"),
                remedy="remove episode.resources, or run the campaign on a cluster",
            )
        resources = dict(plan.limits.bundle or {})
        self._actor: Any = (
            ray.remote(EnvironmentActor)
            .options(
                num_cpus=resources.pop("CPU", 0),
                num_gpus=resources.pop("GPU", 0),
                resources=resources,
                scheduling_strategy="SPREAD",
                max_restarts=0,
                max_concurrency=MOST_CALLS,
            )
            .remote(plan.travelling(), described)
        )

    def ask(self, request: Request, *arguments: Any) -> Future[HostAnswer]:
        """See `EnvironmentHost.ask`."""
        future: Future[HostAnswer] = getattr(self._actor, request).remote(*arguments).future()
        return future

    def end(self, patience_s: float) -> None:
        """See `EnvironmentHost.end`."""
        import ray

        if not ray.is_initialized():  # The cluster has ended, and the actor with it.
            return
        with suppress(ray.exceptions.RayError):
            if patience_s:
                ray.get(self._actor.end.remote(), timeout=patience_s)
        with suppress(ray.exceptions.RayError, ValueError):
            ray.kill(self._actor, no_restart=True)

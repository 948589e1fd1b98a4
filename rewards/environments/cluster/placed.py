"""Environments of a round on the nodes of a Ray cluster: each episode in one of several actors.

An actor holds the same killable workers that would run here, so an episode with the same key is the same
wherever it is. Actors are spread over the nodes by their resources. One that is lost, with its node or
alone, makes the episodes in it failed samples; others go on, and another actor takes its place.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Self

from rewards.environments.cluster.actor import ActorHost, EnvironmentHost, Request
from rewards.environments.describe import DescribedEnvironment, describe_environments
from rewards.environments.environments import DeadEnvironment
from rewards.environments.plan import EnvironmentsPlan
from rewards.isolation.process import START_S
from rewards.patience import AGAIN_S, SLOW_S
from rewards.pending import LoopThread
from rollouts.episodes.environment import EpisodeRules, Observation, Outcome, Schema, ToolCall
from rollouts.errors import RunError, first_line
from rollouts.pool.placement import told
from rollouts.types import Message, Prompt

logger = logging.getLogger(__name__)

PLACE_S = 300.0
"""Seconds that a node may take to have room for an actor, and to start it."""
NETWORK_S = 30.0
"""Seconds beyond all deadlines of an actor's own after which it counts as lost."""
END_S = 10.0
"""Seconds that an actor may take to end its workers."""
MOST_LOSSES = 3
"""Losses of one actor after the other, without an episode that began, after which none takes its place."""

Launch = Callable[[EnvironmentsPlan, Mapping[str, DescribedEnvironment]], EnvironmentHost]


@dataclass(kw_only=True, slots=True, eq=False)
class RunningHost:
    """An actor, or one that is starting."""

    index: int
    """Place among the actors, which its replacement takes."""
    host: EnvironmentHost
    is_ready: bool = False
    num_episodes: int = 0
    loss: str = ""
    """Reason for which it is lost; empty: it is not."""
    metrics: Mapping[str, float] = field(default_factory=dict)


class PlacedEnvironments:
    """Environments in actors; see `rollouts.episodes.environment.Environments`."""

    def __init__(
        self,
        plan: EnvironmentsPlan,
        rules: EpisodeRules | None = None,
        launch: Launch = ActorHost,
    ) -> None:
        """Read the signatures of all environments in a worker on this machine.

        Args:
            rules: of every episode; None: the defaults.
            launch: starts an actor.

        Raises:
            UserError: one of them cannot be used.
        """
        self.plan = plan
        self.described = describe_environments(plan)
        self._rules = rules or EpisodeRules(episode_s=plan.limits.episode_s)
        self._launch = launch
        self._hosts: dict[int, RunningHost] = {}
        self._starts: set[asyncio.Task[None]] = set()
        """Starts under way."""
        self._first_starts: Sequence[asyncio.Task[None]] = ()
        self._messages: asyncio.Task[None] | None = None
        """Task that says what starts wait for."""
        self._drops: set[asyncio.Task[Any]] = set()
        self._episodes: dict[str, RunningHost] = {}
        self._opening: dict[str, object] = {}
        """Episodes that wait for an actor, by key; one that is given up meanwhile is taken out."""
        self._losses: Counter[int] = Counter()
        """Losses in a row, by the place of the actor."""
        self._last_loss = ""
        self._past: Counter[str] = Counter()
        """Counts of actors that are no more."""
        self._is_begun = False
        self._loop = LoopThread()

    def rules(self, prompt: Prompt) -> EpisodeRules | None:
        """Return the limits of an episode, which all prompts share."""
        return self._rules

    def schemas(self, prompt: Prompt) -> Sequence[Schema]:
        """Return the schemas of the tools of a prompt's environment."""
        return self.described[self.plan.name_for(prompt)].schemas

    def open(self, key: str, prompt: Prompt) -> Future[str | None]:
        """Begin an episode; see `Environments.open`."""
        self._is_begun = True
        return self._loop.submit(self._open(key, prompt))

    def call(self, key: str, calls: Sequence[ToolCall]) -> Future[Sequence[Observation]]:
        """Make the calls of a turn; see `Environments.call`."""
        return self._loop.submit(self._call(key, calls))

    def close(self, key: str, messages: Sequence[Message] = ()) -> Future[Outcome]:
        """End an episode; see `Environments.close`."""
        return self._loop.submit(self._close(key, messages))

    def drop(self, key: str) -> None:
        """Give an episode up; see `Environments.drop`."""
        self._loop.submit(self._drop(key))

    def shutdown(self) -> None:
        """End all actors. Episodes that are under way end with an error; a later one starts new ones."""
        if self._is_begun:
            self._loop.submit(self._end()).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    @property
    def metrics(self) -> dict[str, float]:
        """Counts of all actors so far, for logs, with the number of those that were lost."""
        counts = Counter(self._past)
        for running in list(self._hosts.values()):
            counts.update(running.metrics)
        return {name: float(count) for name, count in sorted(counts.items())}

    async def _open(self, key: str, prompt: Prompt) -> str | None:
        if key in self._episodes or key in self._opening:
            raise ValueError(f"episode {key!r} is open already")
        # An actor's first episode starts its worker, and may start it once again.
        limit_s = 2 * START_S + self.plan.limits.episode_s
        while True:
            running = await self._home(key)
            try:
                text: str | None = await self._ask(running, "open", key, prompt, limit_s=limit_s)
            except BaseException:
                is_wanted = self._episodes.get(key) is running
                self._free(key, running)
                if running.loss and is_wanted:
                    continue  # It has not begun, so another actor can have it.
                raise
            self._losses[running.index] = 0
            return text

    async def _home(self, key: str) -> RunningHost:
        """Give an episode an actor, which may have to be started.

        Raises:
            DeadEnvironment: the episode was given up meanwhile, or no actor is left.
        """
        opening = self._opening[key] = object()
        try:
            running = await self._ready_host()
        finally:
            is_wanted = self._opening.get(key) is opening
            if is_wanted:
                del self._opening[key]
        if not is_wanted:
            raise DeadEnvironment(f"episode {key!r} was given up before it began")
        self._episodes[key] = running
        running.num_episodes += 1
        return running

    async def _call(self, key: str, calls: Sequence[ToolCall]) -> Sequence[Observation]:
        limits = self.plan.limits
        # Functions without an object go on in a new process after every call that ends theirs.
        limit_s = (len(calls) + 1) * (limits.call_s + NETWORK_S) + limits.episode_s
        observations: Sequence[Observation] = await self._in_episode(
            key, self._host_of(key), "call", calls, limit_s=limit_s
        )
        return observations

    async def _close(self, key: str, messages: Sequence[Message]) -> Outcome:
        running, limit_s = self._host_of(key), self.plan.limits.episode_s
        outcome: Outcome = await self._in_episode(key, running, "close", messages, limit_s=limit_s)
        self._free(key, running)
        return outcome

    async def _drop(self, key: str) -> None:
        self._opening.pop(key, None)
        running = self._episodes.get(key)
        if running is None:
            return
        self._free(key, running)
        if not running.loss:
            drop = asyncio.create_task(self._ask(running, "drop", key, limit_s=0.0))
            self._drops.add(drop)
            drop.add_done_callback(self._dropped)

    def _dropped(self, drop: asyncio.Task[Any]) -> None:
        self._drops.discard(drop)
        if not drop.cancelled():
            drop.exception()  # Nobody waits for the episode.

    def _host_of(self, key: str) -> RunningHost:
        running = self._episodes.get(key)
        if running is None:
            raise DeadEnvironment(f"episode {key!r} is not open")
        return running

    async def _in_episode(
        self, key: str, running: RunningHost, request: Request, *arguments: Any, limit_s: float
    ) -> Any:
        """Ask the actor of an episode; one without an answer is over."""
        try:
            return await self._ask(running, request, key, *arguments, limit_s=limit_s)
        except BaseException:
            self._free(key, running)
            raise

    def _free(self, key: str, running: RunningHost) -> None:
        if self._episodes.get(key) is running:
            del self._episodes[key]
            running.num_episodes -= 1

    async def _ask(
        self,
        running: RunningHost,
        request: Request,
        *arguments: Any,
        limit_s: float,
        late: str = "no answer",
    ) -> Any:
        """Return an actor's answer.

        Args:
            late: what did not happen in time, for the message.

        Raises:
            DeadEnvironment: the environment failed, or the actor is lost.
        """
        if running.loss:
            raise DeadEnvironment(running.loss)
        try:
            future = running.host.ask(request, *arguments)
            # Shielded: a late answer finds its future as it was.
            answered = asyncio.shield(asyncio.wrap_future(future))
            answer = await asyncio.wait_for(answered, limit_s + NETWORK_S)
        except TimeoutError:
            self._lose(running, f"{late} within {limit_s + NETWORK_S:g} s")
            raise DeadEnvironment(running.loss) from None
        except Exception as error:  # Ray raises many types for an actor that is gone.
            self._lose(running, first_line(error))
            raise DeadEnvironment(running.loss) from error
        running.metrics = answer.metrics
        if answer.failure is not None:
            raise DeadEnvironment(answer.failure)
        return answer.value

    async def _ready_host(self) -> RunningHost:
        """Return the actor with the fewest episodes; the first episodes wait until all have started."""
        if not self._hosts and not self._last_loss:
            for index in range(self.plan.limits.workers):
                self._begin(index)
            self._first_starts = tuple(self._starts)
        if self._first_starts:
            await asyncio.wait(self._first_starts)
            self._first_starts = ()
        while not (ready := [each for each in self._hosts.values() if each.is_ready]):
            if not self._starts:
                reason = self._last_loss or "they were ended before an episode began"
                raise DeadEnvironment(f"no node holds environments any more: {reason}")
            await asyncio.wait(self._starts, return_when=asyncio.FIRST_COMPLETED)
        return min(ready, key=lambda running: running.num_episodes)

    def _begin(self, index: int) -> None:
        """Launch an actor."""
        running = RunningHost(index=index, host=self._launch(self.plan, self.described))
        self._hosts[index] = running
        start = asyncio.create_task(self._start(running))
        self._starts.add(start)
        start.add_done_callback(self._starts.discard)
        if self._messages is None or self._messages.done():
            self._messages = asyncio.create_task(self._say_waits())

    async def _say_waits(self) -> None:
        """Say at times what actors wait for, as long as some have not started."""
        limits = self.plan.limits
        await asyncio.sleep(SLOW_S)
        while self._starts:
            logger.warning(
                "environment %s: %d of %d processes wait for a node with %s free and for their start there "
                "(at most %g s; %s)", ", ".join(self.plan.names), len(self._starts), limits.workers,
                told(limits.bundle or {}), PLACE_S, self.plan.place("episode.resources"),
            )  # fmt: skip
            await asyncio.sleep(AGAIN_S)

    async def _start(self, running: RunningHost) -> None:
        """Wait until an actor has started; one that does not is lost."""
        granted = {n: os.environ[n] for n in self.plan.limits.variables if n in os.environ}
        try:
            await self._ask(
                running,
                "start",
                granted,
                limit_s=PLACE_S,
                late="no node had room for it and started it",
            )
        except RunError:  # Also where no cluster is left to launch another one on.
            return
        running.is_ready = True

    def _lose(self, running: RunningHost, reason: str) -> None:
        """End an actor that does not answer, and launch another one in its place."""
        if running.loss:
            return
        running.loss = f"the process on a node that held it is lost: {reason}"
        running.is_ready = False
        ending = asyncio.create_task(asyncio.to_thread(running.host.end, 0.0))
        self._drops.add(ending)
        ending.add_done_callback(self._dropped)
        if self._hosts.get(running.index) is not running:  # All are being ended.
            return
        del self._hosts[running.index]
        self._past.update(running.metrics)
        self._past["environment/lost_processes"] += 1
        self._last_loss = reason
        self._losses[running.index] += 1
        if self._losses[running.index] <= MOST_LOSSES:
            self._begin(running.index)

    async def _end(self) -> None:
        self._opening.clear()
        self._episodes.clear()
        hosts, self._hosts, self._last_loss = list(self._hosts.values()), {}, ""
        for task in (*self._starts, self._messages):
            if task is not None:
                task.cancel()
        for running in hosts:
            running.is_ready, running.loss = False, "the environments were ended"
            self._past.update(running.metrics)
        await asyncio.gather(*(asyncio.to_thread(each.host.end, END_S) for each in hosts))
        self._losses.clear()

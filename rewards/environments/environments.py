"""The environments of a round: opened, called and closed by the key of an episode, in worker processes.

An episode has an object of its own in a process of its own. Objects are made once and reset often, as in
TRL: a process whose episode is over waits for the next one. A tool's mistake is a text for the policy.
Where the object itself is lost, with a crash or a hang that no signal ends, the future raises and the
episode is a failed sample. Functions without an object lose nothing: their call goes on in a new process.
They have one from their first call on, so an episode that calls nothing costs none.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self

from rewards.environments.children import Child, ChildLost, WorkerProcess
from rewards.environments.describe import DescribedEnvironment, describe_environments
from rewards.environments.observations import (
    OBSERVATION_KINDS,
    ObservationKind,
    ToolText,
    error_text,
)
from rewards.environments.plan import EnvironmentsPlan
from rewards.environments.state import finite
from rewards.pending import LoopThread
from rollouts.episodes.environment import (
    EpisodeRules,
    Observation,
    Outcome,
    Schema,
    ToolCall,
)
from rollouts.errors import RunError
from rollouts.types import Message, Prompt
from rollouts.values import Unholdable, normalised, to_json


class DeadEnvironment(RunError):
    """An environment that an episode cannot go on in: the sample failed."""


@dataclass(kw_only=True, slots=True)
class _Acting:
    """An episode under way."""

    environment: str
    placed: Child | None = None
    """Process that serves it; functions without an object have none before their first call."""
    is_late: bool = False
    """True once a call was interrupted: the object serves no further episode."""
    seconds: float = 0.0
    """Seconds that the calls so far have taken."""

    @property
    def child(self) -> Child:
        """Process that serves the episode."""
        assert self.placed is not None
        return self.placed


class WorkerEnvironments:
    """Environments in worker processes; see `rollouts.episodes.environment.Environments`.

    Attributes:
        counts: observations by their kind, and ``restarts`` of workers.
    """

    def __init__(
        self,
        plan: EnvironmentsPlan,
        rules: EpisodeRules | None = None,
        described: Mapping[str, DescribedEnvironment] | None = None,
    ) -> None:
        """Read the signatures of all environments in a worker.

        Args:
            rules: of every episode; None: the defaults.
            described: the signatures, where they were read before.

        Raises:
            UserError: one of them cannot be used.
        """
        self.plan = plan
        self.described = describe_environments(plan) if described is None else described
        self.counts: Counter[str] = Counter()
        self._rules = rules or EpisodeRules(episode_s=plan.limits.episode_s)
        self._acting: dict[str, _Acting] = {}
        self._workers: list[WorkerProcess] = []
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
        """End all processes. Episodes that are under way end with an error; a later one starts new ones."""
        if not self._is_begun:
            return
        self._loop.submit(self._end()).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    @property
    def metrics(self) -> dict[str, float]:
        """Counts so far, for logs."""
        restarts = sum(worker.restarts for worker in self._workers)
        counts = {**self.counts, **({"restarts": restarts} if restarts else {})}
        return {f"environment/{name}": float(count) for name, count in sorted(counts.items())}

    async def _open(self, key: str, prompt: Prompt) -> str | None:
        if key in self._acting:
            raise ValueError(f"episode {key!r} is open already")
        name = self.plan.name_for(prompt)
        if name not in self.described:
            raise DeadEnvironment(
                f"{prompt.label} names the environment {name!r}; there are: {', '.join(self.described)}"
            )
        try:
            row = {column: to_json(normalised(v)) for column, v in self.plan.row(prompt).items()}
        except Unholdable as error:
            raise DeadEnvironment(f"{prompt.label} holds {error}, which cannot be sent") from error
        acting = self._acting[key] = _Acting(environment=name)
        if not self.described[name].has_object:  # Nothing is reset; a process comes with a call.
            return None
        await self._place(key, acting)
        return await self._reset(key, acting, row)

    async def _place(self, key: str, acting: _Acting) -> None:
        """Give an episode a process, which may have to be started.

        Raises:
            DeadEnvironment: the episode was given up meanwhile.
        """
        worker = self._least_busy()
        worker.busy += 1
        try:
            child = await worker.child()
            if self._acting.get(key) is not acting:
                worker.keep(child)
                raise DeadEnvironment(f"episode {key!r} was given up before it began")
        except BaseException:
            worker.busy -= 1
            self._free(key, acting)
            raise
        acting.placed = child

    async def _reset(self, key: str, acting: _Acting, row: Mapping[str, Any]) -> str | None:
        """Begin an episode in its process; return the text that it opens with."""
        request = {"do": "open", "row": row, "seed": seed_of(key)}
        answer = await self._ask(key, acting, request, self.plan.limits.episode_s)
        text = answer.get("text")
        return text if isinstance(text, str) else None

    async def _call(self, key: str, calls: Sequence[ToolCall]) -> Sequence[Observation]:
        """Make the calls of a turn; an episode that cannot go on is over."""
        acting = self._acting_of(key)
        try:
            if acting.placed is None:
                await self._place(key, acting)
                await self._reset(key, acting, {})
            return await self._turn(key, acting, calls)
        except BaseException:
            acting.is_late = True
            self._free(key, acting)
            raise

    async def _turn(
        self, key: str, acting: _Acting, calls: Sequence[ToolCall]
    ) -> Sequence[Observation]:
        """Make the calls of a turn, those after a crash of a tool without an object in a new process."""
        limit_s = self.plan.limits.call_s
        answers: dict[int, tuple[ToolText, float]] = {}
        turn: Mapping[str, Any] = {}
        while not turn:
            left = [index for index in range(len(calls)) if index not in answers]
            try:
                turn = await self._make(acting, [calls[index] for index in left], left, answers)
            except ChildLost as lost:
                await self._replace(key, acting, lost)
                kind: ObservationKind = "late" if lost.late else "crashed"
                text = error_text(str(lost), kind, self.plan.limits.observation_chars)
                for guilty in (index for index in left if index not in answers):
                    answers[guilty] = text, limit_s
                    break
                if len(answers) == len(calls):
                    turn = {"done": False, "reward": None}
        acting.seconds += sum(seconds for _, seconds in answers.values())
        kinds = [shown.kind for shown, _ in answers.values()]
        self.counts.update(kinds)
        acting.is_late |= "late" in kinds
        last = len(calls) - 1
        return [
            Observation(
                text=answers[index][0].text,
                failed=answers[index][0].failed,
                done=index == last and turn.get("done") is True,
                reward=turn.get("reward") if index == last else None,
                seconds=answers[index][1],
            )
            for index in range(len(calls))
        ]

    async def _make(
        self,
        acting: _Acting,
        calls: Sequence[ToolCall],
        places: Sequence[int],
        answers: dict[int, tuple[ToolText, float]],
    ) -> Mapping[str, Any]:
        """Ask a child to make calls; fill in ``answers`` and return what the environment says of the turn.

        Raises:
            ChildLost: it gave no answer to the first call that is not among ``answers``.
        """
        limit_s, episode_s = self.plan.limits.call_s, self.plan.limits.episode_s
        left_s = episode_s - acting.seconds - sum(seconds for _, seconds in answers.values())
        sent = [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]
        request = {"do": "call", "environment": acting.environment, "calls": sent}
        await acting.child.send({**request, "limit_s": limit_s, "left_s": left_s})
        while True:
            message = await acting.child.receive(limit_s)
            if "fault" in message:
                raise DeadEnvironment(str(message["fault"]))
            if "turn" in message:
                return _checked_turn(message["turn"])
            try:
                kind = OBSERVATION_KINDS[OBSERVATION_KINDS.index(message["kind"])]
                text = ToolText(str(message["text"]), kind)
                answers[places[message["index"]]] = text, float(message["s"])
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise ChildLost(f"the environment's answer is malformed: {error}") from error

    async def _close(self, key: str, messages: Sequence[Message]) -> Outcome:
        acting = self._acting_of(key)
        name = acting.environment or self.described[acting.environment].kind
        if not self.described[acting.environment].has_object:
            self._free(key, acting)
            return Outcome(environment=name)
        request = {"do": "close", "messages": [dict(message) for message in messages]}
        answer = await self._ask(key, acting, request, self.plan.limits.episode_s)
        self._free(key, acting)
        outcome = answer["outcome"]
        reward = outcome.get("reward")
        if not (reward is None or isinstance(reward, int | float)) or not finite(reward):
            raise DeadEnvironment(f"the environment sent the reward {reward!r}")
        return Outcome(reward=reward, state=dict(outcome.get("state", {})), environment=name)

    async def _drop(self, key: str) -> None:
        if key in self._acting:
            acting = self._acting[key]
            acting.is_late = True
            self._free(key, acting)

    async def _ask(
        self, key: str, acting: _Acting, request: Mapping[str, Any], limit_s: float
    ) -> dict[str, Any]:
        """Return the answer to one request; an episode without one is over."""
        try:
            await acting.child.send(
                {**request, "environment": acting.environment, "limit_s": limit_s}
            )
            answer = await acting.child.receive(limit_s)
            if "fault" in answer:
                raise DeadEnvironment(str(answer["fault"]))
        except BaseException as error:
            acting.is_late = True
            self._free(key, acting)
            if isinstance(error, ChildLost):
                raise DeadEnvironment(str(error)) from error
            raise
        return answer

    async def _replace(self, key: str, acting: _Acting, lost: ChildLost) -> None:
        """Go on in a new process where there is no object to lose.

        Raises:
            DeadEnvironment: there was one.
        """
        home = acting.child.home
        is_over = self._acting.get(key) is not acting
        if is_over or self.described[acting.environment].has_object:
            raise DeadEnvironment(str(lost)) from lost
        acting.child.kill()
        acting.placed = await home.child()
        await self._reset(key, acting, {})

    def _acting_of(self, key: str) -> _Acting:
        acting = self._acting.get(key)
        if acting is None or (
            acting.placed is None and self.described[acting.environment].has_object
        ):
            raise DeadEnvironment(f"episode {key!r} is not open")
        return acting

    def _free(self, key: str, acting: _Acting) -> None:
        """End an episode; its process waits for another one, or is killed if a call was interrupted."""
        if self._acting.get(key) is not acting:  # It was freed before.
            return
        del self._acting[key]
        if acting.placed is None:
            return
        home = acting.child.home
        home.busy -= 1
        if acting.is_late:
            acting.child.kill()
        else:
            home.keep(acting.child)

    def _least_busy(self) -> WorkerProcess:
        if len(self._workers) < self.plan.limits.workers:
            self._workers.append(WorkerProcess(self.plan))
            return self._workers[-1]
        return min(self._workers, key=lambda worker: worker.busy)

    async def _end(self) -> None:
        for key, acting in list(self._acting.items()):
            acting.is_late = True
            self._free(key, acting)
        await asyncio.gather(*(asyncio.to_thread(worker.end) for worker in self._workers))
        self._workers.clear()


def seed_of(key: str) -> int:
    """Return the seed of an episode's random numbers: the same whenever the episode is repeated."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")


def _checked_turn(message: Any) -> dict[str, Any]:
    """Check what a child says of a turn."""
    if not isinstance(message, dict):
        raise ChildLost(f"the environment's answer is malformed: {message!r}")
    reward = message.get("reward")
    if not (reward is None or isinstance(reward, int | float)) or not finite(reward):
        raise ChildLost(f"the environment sent the reward {reward!r}")
    return {"done": message.get("done") is True, "reward": reward}

"""Reward that runs in worker processes, in the place of the function in a `RewardPart`."""

from __future__ import annotations

import inspect
import json
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from rewards.base import Sample
from rewards.call import PartFailure, PartOutcome
from rewards.imports import code_digest
from rewards.isolation.batch import Clock, WorkerBatch
from rewards.isolation.levels import Isolation
from rewards.isolation.pool import Pool
from rewards.isolation.process import Plan
from rewards.isolation.protocol import holds, pack_sample, pack_state
from rewards.isolation.sandbox import sandbox
from rewards.isolation.user import other_user
from rewards.signatures.parameters import RESERVED, parameters
from rollouts.errors import UserError

_POOLS: weakref.WeakValueDictionary[str, Pool] = weakref.WeakValueDictionary()
"""Pools by everything that makes two rewards the same; a pool lives as long as a reward that uses it."""


class IsolatedReward:
    """A reward in worker processes. Its signature is the reward's own, read in a worker.

    Args:
        name: ``pkg.mod:function``, ``file.py:function`` or a registered name.
        where: its place in the campaign file.

    Raises:
        UserError: it cannot be loaded, or this machine has no sandbox.
    """

    def __init__(
        self, name: str, options: Mapping[str, Any], isolation: Isolation, where: str | None = None
    ) -> None:
        for option, value in options.items():
            if not holds(value):
                raise UserError(
                    f"option {option!r} of reward {name!r} is a {type(value).__name__}",
                    where=where,
                    remedy="options of a reward in a process of its own are plain JSON values",
                )
        folder = Path.cwd()
        names = tuple(_joined(name, options))
        is_sandboxed = isolation.level == "sandbox"
        sandboxed_names = names if is_sandboxed else ()
        visible = (
            path
            for each in sandboxed_names
            for path in sandbox.visible(each, folder, isolation.files, where)
        )
        user = other_user(names, isolation, options, folder, where)
        isolation = replace(isolation, user=None if user is None else user.name)
        plan = Plan(
            reward=name,
            options=dict(options),
            where=where,
            folder=str(folder),
            memory_gib=isolation.memory_gib,
            sample_deadline_s=isolation.sample_deadline_s,
            environment=isolation.environment,
            provider=sandbox.provider(where) if is_sandboxed else None,
            visible=tuple(dict.fromkeys(visible)),
            user=None if user is None else (user.user, user.group),
        )
        self.isolation = isolation
        self.pool = _pool(plan, isolation, names)
        about = self.pool.about()
        self.__signature__ = _signature(about)
        self._takes = parameters(self)

    def __call__(self, **arguments: Any) -> NoReturn:
        raise TypeError("a reward in a process of its own is asked through a rubric")

    def begin(
        self,
        samples_B: Sequence[Sample],
        group_B: Sequence[int],
        state: Any,
        clock: Clock | None = None,
    ) -> WorkerCall:
        """Send samples to the workers. Only the arguments that the reward takes leave this process.

        Args:
            clock: of the batches that this one belongs to; None: it stands alone.
        """
        columns = dict.fromkeys(name for sample in samples_B for name in sample.prompt.columns)
        taken_columns = [name for name in columns if name not in RESERVED]
        packed_B = [pack_sample(sample, self._takes, taken_columns) for sample in samples_B]
        unsent = [packed if isinstance(packed, PartFailure) else None for packed in packed_B]
        sent = [index for index, failure in enumerate(unsent) if failure is None]
        batch = self.pool.begin(
            [packed for packed in packed_B if not isinstance(packed, PartFailure)],
            [group_B[index] for index in sent],
            pack_state(state) if self._takes.take("trainer_state") else "null",
            clock,
        )
        return WorkerCall(batch=batch, unsent=unsent)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerCall:
    """Samples on their way through the workers."""

    batch: WorkerBatch
    unsent: Sequence[PartFailure | None]
    """Reason, for each sample, why it was not sent; None where it was."""

    def result(self) -> list[PartOutcome]:
        """Wait, at most for the deadlines; raise the errors that the reward addresses to a person."""
        self.batch.done.wait()
        if self.batch.error is not None:
            raise self.batch.error
        answers = iter(self.batch.outcomes_B)
        return [next(answers) if failure is None else failure for failure in self.unsent]

    def extras_B(self) -> list[dict[str, Any]]:
        """Return what each sample was given through ``log_extra``."""
        extras = iter(self.batch.extras_B())
        return [next(extras) if failure is None else {} for failure in self.unsent]


def _joined(name: str, options: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of a reward and of all that it is made of."""
    from rewards.registry import find_reward

    yield name
    try:
        members = find_reward(name).members(options)
    except UserError:  # A worker says what is wrong, when it loads the reward.
        return
    for member, settings in members:
        yield from _joined(member, settings)


def _pool(plan: Plan, isolation: Isolation, names: Iterable[str]) -> Pool:
    # Code that changed is another reward.
    code = [code_digest(name, Path(plan.folder)) for name in names]
    words = (plan.reward, plan.options, plan.folder, str(isolation), code)
    key = json.dumps(words, sort_keys=True)
    pool = _POOLS.get(key)
    if pool is None:
        pool = Pool(plan, workers=isolation.workers, deadline_s=isolation.deadline_s)
        _POOLS[key] = pool
    return pool


def _signature(about: Mapping[str, Any]) -> inspect.Signature:
    kind = inspect.Parameter
    required = set(about["required"])
    parameters = [
        kind(name, kind.KEYWORD_ONLY, default=kind.empty if name in required else None)
        for name in about["names"]
    ]
    if about["anything"]:
        parameters.append(kind("other_columns", kind.VAR_KEYWORD))
    return inspect.Signature(parameters)

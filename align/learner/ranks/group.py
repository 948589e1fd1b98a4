"""Several ranks as one learner: a Ray actor each, in step through torch.distributed.

A `LearnerGroup` is driven like a `Learner`, and its `GroupTraining` like a `Training`. A caller may rely on
three things:

* every wait has a deadline, and a rank that dies or misses it is named in the error;
* after an error that all ranks report alike, such as a parity error, the group still works; after any
  other it is closed;
* `close` leaves no process behind.

All ranks are placed on one machine: they talk over loopback, where nobody else can join them, and read
snapshots and checkpoints from the same folders. Ray must be running; the group starts no cluster.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING, Any, Literal

from align.config.campaign import PolicyConfig, RoundSettings
from align.config.policy import EngineConfig, WaitsConfig
from rollouts.engines.protocol import WeightSendError, WeightUpdate
from rollouts.engines.stored_tensor import read_stored
from rollouts.errors import KeelError, RunError
from rollouts.machine.device import resolve_device
from rollouts.machine.processor import quickest_dtype
from rollouts.machine.silence import Silence
from rollouts.pool.fleet import Note, reason_of
from rollouts.pool.placement import Room, on_one_machine, told
from rollouts.types import Mix, PromptIds, SnapshotId

if TYPE_CHECKING:
    from align.algorithms.rows import Batch, Row
    from align.learner.checkpoint import Checkpoint
    from align.learner.penalty import MakePenalties
    from align.learner.references import PolicyTask, References

Part = Literal["rank", "learner", "training"]
"""Object of a rank that a call goes to; the training is the one that was begun last."""
HOST = "127.0.0.1"
WHERE = "learner ranks"
SIGNS = "signs"
"""Concurrency group of `RankActor.sign`, which answers beside a running call."""
SIGN_S = 5.0
"""Seconds in which a rank that lives says what it does."""
COLLECTIVES = "torch.distributed.distributed_c10d"
"""Module of the calls in which a rank waits for the others."""
GRACE_S = 5.0
"""Seconds that other ranks may take to report after one has failed: the first is often not the cause."""


class RankActor:
    """One rank's learner, in a process of its own."""

    def __init__(self, rank: int, size: int, deadline_s: float) -> None:
        self._rank, self._size, self._deadline = rank, size, timedelta(seconds=deadline_s)
        self._folders: dict[SnapshotId, Path] = {}
        self._learner: Any = None
        self._training: Any = None
        self._store: Any = None
        self._caller = 0
        """Thread of the running call."""

    def sign(self) -> str:
        """Say what the rank does at this moment; called on a thread of its own beside a running call."""
        frame = sys._current_frames().get(self._caller)
        activity = "has nothing to do"
        while frame is not None:
            module, function = str(frame.f_globals.get("__name__", "")), frame.f_code.co_name
            if module == COLLECTIVES and function != "wrapper":
                activity = f"waits for the others in {function}"
            elif module.startswith("align.learner.") and activity == "has nothing to do":
                activity = f"is in {module.removeprefix('align.learner.')}.{function}"
            frame = frame.f_back
        return activity

    def open_store(self) -> int:
        """Open the meeting point of all ranks; return its port, which nobody else can have taken."""
        self._store = self._meet(0)
        return int(self._store.port)

    def start(self, port: int, base: Path, config: PolicyConfig, **options: Any) -> int:
        """Join the others and build the learner; return the id of the process it lives in."""
        import torch

        from align.learner.learner import Learner
        from align.learner.ranks.ranks import Ranks

        self._caller = get_ident()
        cuda = torch.cuda.is_available()
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=self._store or self._meet(port),
            rank=self._rank,
            world_size=self._size,
            timeout=self._deadline,
        )
        self._learner = Learner(
            base,
            config,
            folder_of=self._folders.__getitem__,
            ranks=Ranks(self._rank, self._size),
            **options,
        )
        return os.getpid()

    def begin(self, *args: Any, **options: Any) -> None:
        """Begin a round; the training before is let go of first."""
        self._training = None
        self._training = self._learner.begin(*args, **options)

    def call(
        self,
        folders: Mapping[SnapshotId, Path],
        part: Part,
        method: str,
        *args: Any,
        **options: Any,
    ) -> Any:
        """Call a method; only the first rank's result travels, weights as arrays in host memory."""
        from rollouts.engines.transfer.host import to_host

        self._caller = get_ident()
        self._folders.update(folders)
        parts = {"rank": self, "learner": self._learner, "training": self._training}
        result = getattr(parts[part], method)(*args, **options)
        if self._rank > 0:
            return None
        if isinstance(result, WeightUpdate) and result.send is not None:
            return replace(result, send=_stays)
        if isinstance(result, WeightUpdate) and result.tensors is not None:
            tensors = result.tensors if on_one_machine() else read_stored(result.tensors)
            return replace(result, tensors=to_host(tensors))
        return result

    def save_critic(self, folder: Path) -> None:
        """Write the critic; one rank is asked, since each holds it whole."""
        self._training.critic.save(folder)

    def _meet(self, port: int) -> Any:
        import torch

        return torch.distributed.TCPStore(  # type: ignore[attr-defined]
            HOST,
            port,
            self._size,
            is_master=self._rank == 0,
            timeout=self._deadline,
            wait_for_workers=False,
        )


@dataclass(frozen=True, slots=True)
class GroupCritic:
    """Critic of several ranks, as seen from outside."""

    group: LearnerGroup

    def save(self, folder: Path) -> None:
        """See `Critic.save`; the first rank writes."""
        self.group.save_critic(folder.absolute())


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupTraining:
    """Training of several ranks, as seen from outside. It ends when the group begins another."""

    learner: LearnerGroup
    critic: GroupCritic | None
    """Critic of the round's algorithm; None where it has none."""

    def before_steps(self, rows: Sequence[Row]) -> None:
        """See `Training.before_steps`."""
        self.learner.call("training", (), "before_steps", list(rows))

    def update(self, batch: Batch) -> dict[str, float]:
        """See `Training.update`. Every rank gets the whole batch and makes its share of the passes."""
        owners = {row.owner for row in batch.rows if row.owner is not None}
        metrics: dict[str, float] = self.learner.call("training", owners, "update", batch)
        return metrics

    def divergence(self, rows: Sequence[Row], snapshot: SnapshotId) -> float:
        """See `Training.divergence`."""
        return float(self.learner.call("training", [snapshot], "divergence", list(rows), snapshot))

    def write_artifacts(self, folder: Path, rows: Sequence[Row]) -> None:
        """See `Training.write_artifacts`; the first rank writes."""
        self.learner.call("training", (), "write_artifacts", folder.absolute(), rows)

    def counters(self) -> dict[str, Any]:
        """See `Training.counters`; the first rank's."""
        counters: dict[str, Any] = self.learner.call("training", (), "counters")
        return counters

    def resume(self, counters: Mapping[str, Any]) -> None:
        """See `Training.resume`."""
        self.learner.call("training", (), "resume", dict(counters))

    def checkpoint(self, folder: Path, step: int, **records: Any) -> None:
        """See `Training.checkpoint`; every rank writes its own part."""
        self.learner.call("training", (), "checkpoint", folder.absolute(), step, **records)

    def restore(self, folder: Path, *, identity: Mapping[str, str]) -> Checkpoint | None:
        """See `Training.restore`."""
        checkpoint: Checkpoint | None = self.learner.call(
            "training", (), "restore", folder.absolute(), identity=identity
        )
        return checkpoint


class LearnerGroup:
    """A learner over ``config.ranks`` actors; each takes ``config.resources``.

    Args:
        base: model folder, as for `Learner`.
        folder_of: folder of a snapshot, which every rank can read.
        scratch: folder for adapters on their way to the engines.
        waits: seconds that the ranks may take to start, and that any one call may take.
        note: told which rank is waited for.

    Raises:
        RunError: Ray is not running, or the ranks did not start.
    """

    def __init__(
        self,
        base: Path,
        config: PolicyConfig,
        *,
        folder_of: Callable[[SnapshotId], Path],
        scratch: Path,
        tolerance: float | None = None,
        engines: EngineConfig = EngineConfig(),  # noqa: B008  (frozen)
        waits: WaitsConfig = WaitsConfig(),  # noqa: B008  (frozen)
        note: Note = lambda _: None,
    ) -> None:
        import ray

        from align.learner.learner import TOLERANCE

        if not ray.is_initialized():
            raise RunError("Ray is not running", where=WHERE, remedy="set policy.ranks to 1")
        config = config.without_auto(quickest_dtype(resolve_device("auto")))
        self.tolerance = tolerance or TOLERANCE[config.dtype]
        self._folder_of, self._waits, self._note = folder_of, waits, note
        self._folders: dict[SnapshotId, Path] = {}
        self._room: Room | None = None
        self._actors: list[Any] = []
        self.pids: list[int] = []
        """Process id of each rank."""
        try:
            self._launch(config, waits.ranks_start_s)
            first = self._actors[0].open_store.remote()
            port = self._wait([first], waits.ranks_start_s, "start")[0]
            options = {
                "scratch": scratch.absolute(),
                "tolerance": tolerance,
                "engines": engines,
            }
            starts = [
                a.start.remote(port, base.absolute(), config, **options) for a in self._actors
            ]
            self.pids = self._wait(starts, waits.ranks_start_s, "start")
        except BaseException:
            self.close()
            raise

    def begin(
        self,
        spec: RoundSettings,
        references: References,
        *,
        num_steps: int,
        seed: int,
        penalties: MakePenalties,
    ) -> GroupTraining:
        """See `Learner.begin`; every rank builds penalties of its own."""
        snapshots = [references.base, references.parent, *references.rounds.values()]
        if references.beginning is not None:
            snapshots.extend(references.beginning.snapshots)
        options = {"num_steps": num_steps, "seed": seed, "penalties": penalties}
        self.call("rank", snapshots, "begin", spec, references, **options)
        has_critic = spec.algorithm.critic_config is not None
        return GroupTraining(learner=self, critic=GroupCritic(self) if has_critic else None)

    def load(self, snapshot: SnapshotId) -> None:
        """See `Learner.load`."""
        self.call("learner", [snapshot], "load", snapshot)

    def compute(self, task: PolicyTask) -> Any:
        """See `Learner.compute`; the first rank's result."""
        return self.call("learner", task.snapshots, "compute", task)

    def save(self, folder: Path) -> None:
        """See `Learner.save`; the first rank writes."""
        self.call("learner", (), "save", folder.absolute())

    def weights(self, version: str) -> WeightUpdate:
        """See `Learner.weights`; the tensors are arrays in host memory."""
        update: WeightUpdate = self.call("learner", (), "weights", version)
        if update.send is not None:
            return replace(update, send=partial(self._send, version))
        return update

    def _send(self, version: str, actors: Sequence[Any], workers_each: int) -> None:
        """See `Learner.send`."""
        failure = self.call("learner", (), "send", version, list(actors), workers_each)
        if failure:
            raise WeightSendError(failure)

    def begin_adapter(
        self,
        name: str,
        prompts: Sequence[PromptIds],
        seed: int,
        superseded: AbstractSet[str] = frozenset(),
    ) -> None:
        """See `Learner.begin_adapter`."""
        self.call("learner", (), "begin_adapter", name, list(prompts), seed, superseded)

    def mixes(self, prompts: Sequence[PromptIds]) -> list[Mix]:
        """See `Learner.mixes`; the first rank retrieves."""
        mixes: list[Mix] = self.call("learner", (), "mixes", list(prompts))
        return mixes

    def completion_logprobs(self, rows: Sequence[Row]) -> list[tuple[float, ...]]:
        """See `Learner.completion_logprobs`."""
        logprobs: list[tuple[float, ...]] = self.call(
            "learner", (), "completion_logprobs", list(rows)
        )
        return logprobs

    def close(self) -> None:
        """Kill every rank, whatever it is doing; safe to call twice."""
        import ray

        actors, self._actors = self._actors, []
        room, self._room = self._room, None
        if not ray.is_initialized():
            return
        for actor in actors:
            with suppress(ray.exceptions.RayError, ValueError):
                ray.kill(actor, no_restart=True)
        if room is not None:
            room.release()

    def save_critic(self, folder: Path) -> None:
        """Write the critic of the training that was begun last, on the first rank."""
        if not self._actors:
            raise RunError("the learner's ranks are closed", where=WHERE)
        self._wait(
            [self._actors[0].save_critic.remote(folder)], self._waits.ranks_s, "save the critic"
        )

    def _launch(self, config: PolicyConfig, deadline_s: float) -> None:
        """Reserve room for all ranks on one machine, and start an actor in each place."""
        import ray

        bundle = config.resources.bundle(gpus=ray.cluster_resources().get("GPU", 0) >= 1)
        self._room = Room([bundle] * config.ranks, strategy="STRICT_PACK")
        if not self._room.wait(deadline_s):
            raise RunError(
                f"no machine had room for {config.ranks} ranks within {deadline_s:g} s",
                where=WHERE,
                cause=f"each needs {told(bundle)}, all on one machine, besides what the engines take",
                remedy="lower policy.ranks or rollouts.engines, or use a larger machine",
            )
        loopback = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
        environment = {"OMP_NUM_THREADS": str(config.threads), **loopback}
        for rank in range(config.ranks):
            options = {
                **self._room.options(rank),
                "max_restarts": 0,
                "runtime_env": {"env_vars": environment},
            }
            actor = ray.remote(concurrency_groups={SIGNS: 1})(RankActor).options(**options)
            self._actors.append(actor.remote(rank, config.ranks, self._waits.ranks_s))

    def call(
        self,
        part: Part,
        snapshots: Iterable[SnapshotId],
        method: str,
        *args: Any,
        **options: Any,
    ) -> Any:
        """Call a method on all ranks; return the first rank's result.

        Args:
            snapshots: those that the call reads, so that ranks know their folders.
        """
        import ray

        if not self._actors:
            raise RunError("the learner's ranks are closed", where=WHERE)
        for snapshot in snapshots:
            if snapshot not in self._folders:
                self._folders[snapshot] = self._folder_of(snapshot).absolute()
        shared = [ray.put(argument) for argument in args]
        calls = [
            a.call.remote(self._folders, part, method, *shared, **options) for a in self._actors
        ]
        return self._wait(calls, self._waits.ranks_s, method)[0]

    def _wait(self, calls: list[Any], deadline_s: float, what: str) -> list[Any]:
        """Return results by rank. A failure is reported at once: other ranks may wait for it in vain."""
        import ray

        results: dict[int, Any] = {}
        failures: dict[int, Exception] = {}
        waiting = {call: rank for rank, call in enumerate(calls)}
        deadline = time.monotonic() + deadline_s
        silence = Silence(after_s=min(self._waits.silence_s, deadline_s / 2))
        silent: Mapping[int, str] = {}
        while waiting:
            left_s = max(0.0, min(deadline - time.monotonic(), silence.left_s))
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=left_s)
            if not done and silence.is_due() and not failures:
                lasted_s = silence.lasted_s
                silent = self._signs(waiting.values())
                self._tell(silent, lasted_s, deadline_s, what)
            if not done and time.monotonic() >= deadline:
                break
            if not done:
                continue
            rank = waiting.pop(done[0])
            try:
                results[rank] = ray.get(done[0])
            except ray.exceptions.RayError as error:
                failures[rank] = error
                deadline = min(deadline, time.monotonic() + GRACE_S)
        if len(results) == len(calls):
            return [results[rank] for rank in range(len(calls))]
        alike = len(failures) == len(calls) and all(map(_error_for_people, failures.values()))
        if not alike:
            self.close()
        signs = {rank: silent.get(rank, "") for rank in waiting.values()}
        raise _failure(failures, signs, deadline_s, what)

    def _signs(self, ranks: Iterable[int]) -> dict[int, str]:
        """Ask ranks what they do; a rank that cannot say it has an empty text."""
        import ray

        group = {rank: self._actors[rank].sign for rank in sorted(ranks)}
        signs = {
            sign.options(concurrency_group=SIGNS).remote(): rank for rank, sign in group.items()
        }
        done, _ = ray.wait(list(signs), num_returns=len(signs), timeout=SIGN_S)
        texts = dict.fromkeys(group, "")
        for sign in done:
            with suppress(ray.exceptions.RayError):  # It died: its call says so.
                texts[signs[sign]] = ray.get(sign)
        return texts

    def _tell(
        self, signs: Mapping[int, str], lasted_s: float, deadline_s: float, what: str
    ) -> None:
        """Name the ranks that are waited for: those that give no sign of life, or what all of them do."""
        mute = [rank for rank, text in signs.items() if not text]
        # Long steps are no news, unless the deadline comes near.
        if not mute and lasted_s < deadline_s / 4:
            return
        activities = [f"rank {r} {text or 'gives no sign of life'}" for r, text in signs.items()]
        self._note(
            f"{WHERE}, {what}: no answer for {lasted_s:.0f} s, and the run stops after "
            f"{deadline_s:g} s; {', '.join(activities)}"
        )


def _stays(actors: Sequence[Any], workers_each: int) -> None:
    """Mark weights that stay with the ranks on the way to the driver, which lets the ranks send them."""


def _error_for_people(error: Exception) -> KeelError | None:
    """Return what a rank raised, where it is meant for people."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, KeelError) else None


def _failure(
    failures: Mapping[int, Exception], signs: Mapping[int, str], deadline_s: float, what: str
) -> KeelError:
    """Return the error of the rank to blame: a dead one before one that complains about its peers."""
    import ray

    if not failures:
        mute = [rank for rank, text in signs.items() if not text]
        busy = [f"rank {rank} {text}" for rank, text in signs.items() if text]
        cause = "a process that was stopped, or has neither cores nor memory"
        return RunError(
            f"rank {', '.join(map(str, mute or signs))} did not answer within {deadline_s:g} s",
            where=f"{WHERE}, {what}",
            cause="; ".join([*([cause] if mute else []), *busy]),
            remedy="look for memory pressure on the machine, or take fewer ranks",
        )
    dead = {r: e for r, e in failures.items() if not isinstance(e, ray.exceptions.RayTaskError)}
    if dead:
        rank, error = min(dead.items())
        return RunError(
            f"rank {rank} died",
            where=f"{WHERE}, {what}",
            cause=reason_of(error),
            remedy="look for memory pressure on its machine, then run again",
        )
    for _, failure in sorted(failures.items()):
        if (readable := _error_for_people(failure)) is not None:
            return readable
    rank, error = min(failures.items())
    return RunError(f"rank {rank} failed", where=f"{WHERE}, {what}", cause=reason_of(error))

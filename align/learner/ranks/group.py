"""Several ranks as one learner: a Ray actor each, in step through torch.distributed.

A `LearnerGroup` is driven like a `Learner`, and its `GroupTraining` like a `Training`. A caller may rely on
three things:

* every wait has a deadline, and a rank that dies or misses it is named in the error;
* after an error that all ranks report alike, such as a parity error, the group still works; after any
  other it is closed;
* `close` leaves no process behind.

Ranks on one node talk over loopback, where nobody else can join them. Those of several nodes meet at the
first one's address, and get copies of what they read where they do not see the driver's disk, as they hand
over what they write. Ray must be running; the group starts no cluster.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from align.config.campaign import PolicyConfig, RoundSettings
from align.config.policy import EngineConfig, WaitsConfig
from align.learner.ranks.actor import LOOPBACK, Part, RankActor, Spot
from align.learner.ranks.file_transfer import FileTransfer, LearnerNode
from align.learner.ranks.node_folder import NodeFolder
from align.learner.teachers.teacher import companions_of
from align.store.run_folder import STAGING, checkpoint_at, checkpoints_in
from align.store.snapshots.staging import clear_abandoned, staged
from rollouts.engines.protocol import WeightSendError, WeightUpdate
from rollouts.errors import KeelError, LostRankError, RunError
from rollouts.machine.device import resolve_device
from rollouts.machine.processor import quickest_dtype
from rollouts.machine.silence import Silence
from rollouts.pool.fleet import Note, reason_of
from rollouts.pool.placement import Room, free_by_node, own_node, told
from rollouts.types import Mix, PromptIds, SnapshotId

if TYPE_CHECKING:
    from align.algorithms.rows import Batch, Row
    from align.learner.checkpoint import Checkpoint
    from align.learner.penalty import MakePenalties
    from align.learner.references import PolicyTask, References

WHERE = "learner ranks"
SIGNS = "signs"
"""Concurrency group of `RankActor.sign`, which answers beside a running call."""
SIGN_S = 5.0
"""Seconds in which a rank that lives says what it does."""
GLOO = "/gloo/transport/"
"""Part of the messages of gloo about connections, which are plain RuntimeErrors."""
LEAVE_S = 2.0
"""Seconds that nodes may take to remove their copies; what they leave is removed by the ranks to come."""
GRACE_S = 5.0
"""Seconds that other ranks may take to report after one has failed: the first is often not the cause."""


@dataclass(frozen=True, slots=True)
class GroupCritic:
    """Critic of several ranks, as seen from outside."""

    group: LearnerGroup

    def save(self, folder: Path) -> None:
        """See `Critic.save`; the first rank writes."""
        self.group.write("rank", "save_critic", folder)


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
        self.learner.write("training", "write_artifacts", folder, rows)

    def counters(self) -> dict[str, Any]:
        """See `Training.counters`; the first rank's."""
        counters: dict[str, Any] = self.learner.call("training", (), "counters")
        return counters

    def resume(self, counters: Mapping[str, Any]) -> None:
        """See `Training.resume`."""
        self.learner.call("training", (), "resume", dict(counters))

    def checkpoint(self, folder: Path, step: int, **records: Any) -> None:
        """See `Training.checkpoint`; every rank writes its own part."""
        self.learner.write_checkpoint(folder, step, **records)

    def restore(self, folder: Path, *, identity: Mapping[str, str]) -> Checkpoint | None:
        """See `Training.restore`."""
        checkpoint: Checkpoint | None = self.learner.read_checkpoint(folder, identity=identity)
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
        self._scratch = scratch.absolute()
        self._folders: dict[SnapshotId, Path] = {}
        self._room: Room | None = None
        self._actors: list[Any] = []
        self._transfer = FileTransfer((), self._answers)
        self._adapters: deque[Path] = deque()
        """Folders of adapters that were brought here from another node, the newest last."""
        self.pids: list[int] = []
        """Process id of each rank."""
        try:
            self._launch(config)
            options = {"scratch": self._scratch, "tolerance": tolerance, "engines": engines}
            self._start(base.absolute(), config, options)
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
        for path in (*penalties.artifacts.values(), *companions_of(spec)):
            self._transfer.send(path.absolute())
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
        self.write("learner", "save", folder)

    def weights(self, version: str) -> WeightUpdate:
        """See `Learner.weights`; the tensors are arrays in host memory."""
        update: WeightUpdate = self.call("learner", (), "weights", version)
        if update.send is not None:
            return replace(update, send=partial(self._send, version))
        if update.adapter is None or not self._transfer.needed:
            return update
        folder = self._scratch / Path(update.adapter).name
        self._transfer.collect(folder, folder, keep=True)
        # Engines use the last adapter until they have the new one; older ones are not read again.
        self._adapters.append(folder)
        if len(self._adapters) > 2:
            rmtree(self._adapters.popleft(), ignore_errors=True)
        return replace(update, adapter=str(folder))

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
        if actors and self._transfer.needed:
            left = [node.actor.leave.remote() for node in self._transfer.nodes]
            ray.wait(left, num_returns=len(left), timeout=LEAVE_S)
        for actor in actors:
            with suppress(ray.exceptions.RayError, ValueError):
                ray.kill(actor, no_restart=True)
        if room is not None:
            room.release()

    def _launch(self, config: PolicyConfig) -> None:
        """Reserve room for all ranks, start an actor in each place, and number them.

        Ranks on the driver's node are the first, since what the first rank hands over need not travel then.
        """
        import ray

        deadline_s, per_node = self._waits.ranks_start_s, config.ranks_together
        bundle = config.resources.bundle(gpus=ray.cluster_resources().get("GPU", 0) >= 1)
        whole = {name: amount * per_node for name, amount in bundle.items()}
        self._room = Room([whole] * config.nodes, strategy="STRICT_SPREAD")
        if not self._room.wait(deadline_s):
            raise _no_room(config, bundle, deadline_s)
        environment = {"OMP_NUM_THREADS": str(config.threads)}
        groups: list[list[Any]] = []
        for index in range(config.nodes):
            options = {
                **self._room.options(index, bundle),
                "max_restarts": 0,
                "runtime_env": {"env_vars": environment},
            }
            kind = ray.remote(concurrency_groups={SIGNS: 1})(RankActor).options(**options)
            groups.append([kind.remote(self._waits.ranks_s) for _ in range(per_node)])
            self._actors += groups[-1]
        witness, content = self._scratch / f"witness-{uuid.uuid4().hex}", uuid.uuid4().hex
        witness.write_text(content)
        calls = {
            number * per_node: group[0].spot.remote(witness, content)
            for number, group in enumerate(groups)
        }
        spots: list[Spot] = list(self._wait(calls, deadline_s, "start").values())
        witness.unlink()
        here = own_node()
        order = sorted(range(config.nodes), key=lambda index: (spots[index].node != here, index))
        self._actors = [actor for index in order for actor in groups[index]]
        nodes = [
            LearnerNode(
                address=spots[index].address,
                ranks=tuple(range(number * per_node, (number + 1) * per_node)),
                actor=groups[index][0],
                sees_driver=spots[index].sees_driver,
            )
            for number, index in enumerate(order)
        ]
        self._transfer = FileTransfer(nodes, self._answers)

    def _start(self, base: Path, config: PolicyConfig, options: Mapping[str, Any]) -> None:
        """Let the ranks know each other and their disks, and build a learner on each."""
        deadline_s, nodes = self._waits.ranks_start_s, self._transfer.nodes
        needed = self._transfer.needed
        roots: dict[int, Path] = {}
        if needed:
            calls = {node.first: node.actor.open_folder.remote() for node in nodes}
            roots = self._wait(calls, deadline_s, "start")
        joins, keepers = {}, {}
        for node in nodes:
            files = NodeFolder(root=roots.get(node.first), sees_driver=node.sees_driver)
            for rank in node.ranks:
                joins[rank] = self._actors[rank].join.remote(rank, config.ranks, files)
                keepers[rank] = node.first if needed else 0
        self._wait(joins, deadline_s, "start")
        self._transfer.send(base)
        host = nodes[0].address if len(nodes) > 1 else LOOPBACK
        opened = self._wait({0: self._actors[0].open_store.remote(host)}, deadline_s, "start")
        starts = {
            rank: actor.start.remote(host, opened[0], base, config, keepers[rank], **options)
            for rank, actor in enumerate(self._actors)
        }
        self.pids = list(self._wait(starts, deadline_s, "start").values())

    def _answers(self, calls: Mapping[int, Any], what: str) -> dict[int, Any]:
        return self._wait(calls, self._waits.ranks_s, what)

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

        self._check_open()
        for snapshot in snapshots:
            if snapshot not in self._folders:
                self._folders[snapshot] = self._folder_of(snapshot).absolute()
            self._transfer.send(self._folders[snapshot])
        shared = [ray.put(argument) for argument in args]
        calls = {
            rank: actor.call.remote(self._folders, part, method, *shared, **options)
            for rank, actor in enumerate(self._actors)
        }
        return self._answers(calls, method)[0]

    def write(
        self,
        part: Part,
        method: str,
        folder: Path,
        *args: Any,
        to: Path | None = None,
        **options: Any,
    ) -> None:
        """Call a method that writes files into a folder, on all ranks.

        Args:
            to: folder that gets the files of ranks on several disks; None: ``folder`` itself.
        """
        self._check_open()
        folder = folder.absolute()
        calls = {
            rank: actor.write.remote(part, method, folder, *args, **options)
            for rank, actor in enumerate(self._actors)
        }
        self._answers(calls, method)
        if self._transfer.needed:
            self._transfer.collect(folder, to or folder)

    def write_checkpoint(self, folder: Path, step: int, **records: Any) -> None:
        """Write a checkpoint of the training that was begun last; see `Training.checkpoint`."""
        from align.learner.checkpoint import publish_checkpoint

        if not self._transfer.needed:
            self.write("training", "checkpoint", folder, step, **records)
            return
        clear_abandoned(folder / STAGING)
        with staged(folder / STAGING) as staging:
            self.write("training", "checkpoint", folder, step, to=staging, **records)
            final = checkpoint_at(folder, step)
            publish_checkpoint(staging / final.name, final)

    def read_checkpoint(self, folder: Path, **options: Any) -> Checkpoint | None:
        """Go on from the newest checkpoint in a folder; see `Training.restore`."""
        self._check_open()
        folder = folder.absolute()
        newest = list(checkpoints_in(folder).values())[-1:]
        for path in newest:
            self._transfer.send(path, once=False)
        calls = {
            rank: actor.read.remote("training", "restore", folder, **options)
            for rank, actor in enumerate(self._actors)
        }
        checkpoint: Checkpoint | None = self._answers(calls, "restore")[0]
        for path in newest:
            self._transfer.forget(path)
        return checkpoint

    def _check_open(self) -> None:
        if not self._actors:
            raise RunError("the learner's ranks are closed", where=WHERE)

    def _wait(self, calls: Mapping[int, Any], deadline_s: float, what: str) -> dict[int, Any]:
        """Return results by rank. A failure is reported at once: other ranks may wait for it in vain."""
        import ray

        results: dict[int, Any] = {}
        failures: dict[int, Exception] = {}
        waiting = {call: rank for rank, call in calls.items()}
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
            return {rank: results[rank] for rank in calls}
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


def _no_room(config: PolicyConfig, bundle: Mapping[str, float], deadline_s: float) -> RunError:
    if config.nodes == 1:
        what, together = f"no machine had room for {config.ranks} ranks", "all on one machine, "
    else:
        per_node = config.ranks_per_node
        what, together = f"no {config.nodes} nodes had room for {per_node} ranks each", ""
    return RunError(
        f"{what} within {deadline_s:g} s",
        where=WHERE,
        cause=f"each needs {told(bundle)}, {together}besides what the engines take; there are "
        f"{'; '.join(free_by_node())}",
        remedy="lower policy.ranks or rollouts.engines, or use a larger machine or more of them",
    )


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
        return LostRankError(
            f"rank {', '.join(map(str, mute or signs))} did not answer within {deadline_s:g} s",
            where=f"{WHERE}, {what}",
            cause="; ".join([*([cause] if mute else []), *busy]),
            remedy="look for memory pressure on the machine, or take fewer ranks",
        )
    dead = {r: e for r, e in failures.items() if not isinstance(e, ray.exceptions.RayTaskError)}
    if dead:
        rank, error = min(dead.items())
        return LostRankError(
            f"rank {rank} died",
            where=f"{WHERE}, {what}",
            cause=reason_of(error),
            remedy="look for memory pressure on its machine, then run again",
        )
    for _, failure in sorted(failures.items()):
        if (readable := _error_for_people(failure)) is not None:
            return readable
    rank, error = min(failures.items())
    kind = LostRankError if all(map(_is_of_the_way, failures.values())) else RunError
    return kind(f"rank {rank} failed", where=f"{WHERE}, {what}", cause=reason_of(error))


def _is_of_the_way(error: Exception) -> bool:
    """Tell if a rank says that it lost the others: gloo and NCCL raise these."""
    import torch

    lost = (torch.distributed.DistBackendError, torch.distributed.DistNetworkError)
    return isinstance(getattr(error, "cause", None), lost) or GLOO in str(error)

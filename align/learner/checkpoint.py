"""Checkpoints inside a round: everything the learner needs to go on as if it had never stopped.

    folder/step-00000012/checkpoint.json      which round and step, counters, sha256 of the other files
    folder/step-00000012/rank-0.safetensors   trained weights, moments and generator state of one rank
    folder/staging/                           being written; never read

A checkpoint becomes visible as a whole or not at all, only the newest is kept, and every byte is verified
before a single weight is touched. The prompts of a step follow from its number, so there is no data cursor.
Ranks write into one folder: they have to share a filesystem.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from align.errors import SnapshotError
from align.learner.ranks.sharding import local
from align.store.durable import sync
from align.store.run_folder import CHECKPOINT, STAGING, checkpoint_at, checkpoints_in

if TYPE_CHECKING:
    from align.learner.learner import Learner

WEIGHTS, CRITIC, TEACHER = "weights/", "critic/", "teacher/"
MOMENTS, GENERATOR = "optimizer/", "generator/"
"""What a tensor of a rank's file belongs to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """What stands beside the tensors."""

    step: int
    """Updates that are done; the next one has this index."""
    identity: Mapping[str, str]
    """Config hash, parent and the like: a checkpoint of anything else is refused."""
    ranks: int
    counters: Mapping[str, Any]
    """Of the learner: optimizer steps, skipped steps, steered betas."""
    files: Mapping[str, str]
    """sha256 of each file, by name."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """JSON values of whoever drives the learner, handed back as they were."""


def newest_checkpoint(folder: Path) -> Path | None:
    """The folder of the last complete checkpoint; None before the first."""
    return next(reversed(checkpoints_in(folder).values()), None)


def save_checkpoint(
    learner: Learner,
    folder: Path,
    step: int,
    *,
    identity: Mapping[str, str],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint and remove the ones before it. All ranks call this together."""
    from safetensors.torch import save_file

    ranks, staging = learner.ranks, folder / STAGING
    if ranks.rank == 0:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    ranks.exchange(None)
    path = staging / file_of(ranks.rank)
    save_file(_tensors(learner), path)
    sync(path)
    files = ranks.exchange((path.name, _sha256(path)))
    if ranks.rank == 0:
        made = Checkpoint(
            step=step,
            identity=dict(identity),
            ranks=ranks.size,
            counters=_counters(learner),
            files=dict(files),
            extra=dict(extra or {}),
        )
        (staging / CHECKPOINT).write_text(json.dumps(asdict(made), indent=1, sort_keys=True))
        sync(staging / CHECKPOINT)
        _publish(staging, checkpoint_at(folder, step))


def restore_checkpoint(
    learner: Learner, folder: Path, *, identity: Mapping[str, str]
) -> Checkpoint | None:
    """Continue from the newest checkpoint after `Learner.begin`; None where there is none.

    All ranks call this together, and none of them changes anything before all have read and verified
    their part.

    Raises:
        SnapshotError: it is torn, of another round or configuration, or of another number of ranks; the
            learner is as it was.
    """
    path = newest_checkpoint(folder)
    if path is None:
        return None
    problem: SnapshotError | None = None
    try:
        found, tensors = _read(learner, path, identity)
    except SnapshotError as error:
        problem = error
    for refused in learner.ranks.exchange(problem):
        if refused is not None:
            raise refused
    _apply(learner, tensors, found.counters)
    return found


def file_of(rank: int) -> str:
    """Name of one rank's file."""
    return f"rank-{rank}.safetensors"


def _publish(staging: Path, final: Path) -> None:
    """Give a complete folder its name, then remove every other checkpoint."""
    sync(staging)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(staging, final)
    sync(final.parent)
    for other in checkpoints_in(final.parent).values():
        if other != final:
            shutil.rmtree(other)


def _read(
    learner: Learner, path: Path, identity: Mapping[str, str]
) -> tuple[Checkpoint, dict[str, Tensor]]:
    """This rank's part, verified against the manifest and against the learner."""
    from safetensors.torch import load_file

    try:
        found = Checkpoint(**json.loads((path / CHECKPOINT).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise _torn(path / CHECKPOINT, str(error)) from error
    wanted = {**identity, "ranks": str(learner.ranks.size)}
    saved = {**found.identity, "ranks": str(found.ranks)}
    if other := [name for name in wanted | saved if wanted.get(name) != saved.get(name)]:
        raise SnapshotError(
            f"the checkpoint is of another {other[0]}: {saved.get(other[0])!r}, not "
            f"{wanted.get(other[0])!r}",
            where=str(path),
            cause="the campaign or the production snapshot changed since it was written",
            remedy="remove the folder: the round then starts from its parent",
        )
    file = path / file_of(learner.ranks.rank)
    if not file.is_file() or found.files.get(file.name) != _sha256(file):
        raise _torn(file, "its bytes are not those that were written")
    tensors = load_file(file)
    if misfit := _misfit(learner, tensors):
        raise _torn(file, f"{misfit} does not fit the learner")
    return found, tensors


def _torn(path: Path, cause: str) -> SnapshotError:
    return SnapshotError(
        "the checkpoint cannot be read",
        where=str(path),
        cause=cause,
        remedy="remove its folder: the round then starts from its parent",
    )


def _misfit(learner: Learner, tensors: Mapping[str, Tensor]) -> str | None:
    """The first tensor that is missing, too many, or of another shape."""
    held = {**_held(learner), **_generators(learner)}
    expected = {name: tensor.shape for name, tensor in held.items()}
    found = {name: t.shape for name, t in tensors.items() if not name.startswith(MOMENTS)}
    trained = [local(parameter).shape for parameter in _optimized(learner)]
    for name in tensors.keys() - found.keys():
        index = int(name.split("/")[1])
        expected[name] = trained[index] if index < len(trained) else torch.Size([0])
        found[name] = tensors[name].shape or expected[name]
    other = [name for name in expected | found if expected.get(name) != found.get(name)]
    return other[0] if other else None


def _tensors(learner: Learner) -> dict[str, Tensor]:
    """Everything of this rank that changes while it learns."""
    found = _held(learner)
    for index, parameter in enumerate(_optimized(learner)):
        for key, value in learner._optimizer.state[parameter].items():
            found[f"{MOMENTS}{index}/{key}"] = local(value)
    found |= _generators(learner)
    return {name: tensor.detach().contiguous() for name, tensor in found.items()}


def _held(learner: Learner) -> dict[str, Tensor]:
    """This rank's part of what is trained, by name."""
    policy, critic = learner.policy.named_parameters(), learner.critic
    found = {f"{WEIGHTS}{name}": local(parameter) for name, parameter in policy.items()}
    if critic is not None:
        found |= {f"{CRITIC}{name}": tensor for name, tensor in critic.named_tensors().items()}
    if (teacher := learner.slow_teacher) is not None:
        found |= {f"{TEACHER}{name}": tensor for name, tensor in teacher.named_tensors().items()}
    return found


def _generators(learner: Learner) -> dict[str, Tensor]:
    found = {f"{GENERATOR}cpu": torch.get_rng_state()}
    if learner.device.type == "cuda":
        found[f"{GENERATOR}cuda"] = torch.cuda.get_rng_state(learner.device)
    return found


def _optimized(learner: Learner) -> list[nn.Parameter]:
    """In the optimizer's order, which is that of its construction."""
    return [parameter for group in learner._optimizer.param_groups for parameter in group["params"]]


def _counters(learner: Learner) -> dict[str, Any]:
    counters: dict[str, Any] = {"steps": learner._steps, "skipped": learner._skipped}
    for penalty in learner.penalties:
        counters |= penalty.counters()
    return counters


@torch.no_grad()
def _apply(learner: Learner, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
    """Into the learner's own tensors: the optimizer holds on to these."""
    for name, own in _held(learner).items():
        own.copy_(tensors[name])
    trained = _optimized(learner)
    learner._optimizer.state.clear()
    for name, tensor in tensors.items():
        if name.startswith(MOMENTS):
            _, index, key = name.split("/", 2)
            parameter = trained[int(index)]
            learner._optimizer.state[parameter][key] = _moment(parameter, tensor)
    for penalty in learner.penalties:
        penalty.resume(counters)
    learner._steps, learner._skipped = counters["steps"], counters["skipped"]
    learner._version = None
    torch.set_rng_state(tensors[f"{GENERATOR}cpu"])
    if learner.device.type == "cuda":
        torch.cuda.set_rng_state(tensors[f"{GENERATOR}cuda"], learner.device)


def _moment(parameter: nn.Parameter, saved: Tensor) -> Tensor:
    """A moment on its parameter's device and sharded like it; a step count, a scalar, stays as it is."""
    if not saved.dim():
        return saved.clone()
    moment = torch.zeros_like(parameter)
    local(moment).copy_(saved)
    return moment


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Checkpoints inside a round: all that a training needs to go on as if it had never stopped.

    folder/step-00000012/checkpoint.json      which round and step, counters, sha256 of the other files
    folder/step-00000012/rank-0.safetensors   trained weights, moments and generator state of one rank
    folder/staging/<uuid>/                    being written; never read

A checkpoint becomes visible as a whole or not at all, only the newest is kept, and every byte is verified
before a single weight is touched. The prompts of a step follow from its number, so there is no data cursor.
Ranks on several disks write into as many folders, whose files the driver then brings together.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align.errors import SnapshotError
from align.learner.quantized.moments import eight_bit, moment_shape
from align.learner.ranks.ranks import Ranks
from align.learner.ranks.sharding import local
from align.store.durable import replace, sync
from align.store.run_folder import CHECKPOINT, STAGING, checkpoint_at, checkpoints_in
from align.store.snapshots.staging import clear_abandoned, staged

WEIGHTS, CRITIC, TEACHER, RETENTION = "weights/", "critic/", "teacher/", "retention/"
MOMENTS, GENERATOR = "optimizer/", "generator/"
"""Prefixes of the names in a rank's file, by what a tensor belongs to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingState:
    """State of a training on one rank, besides the generators of its process."""

    weights: Mapping[str, Tensor]
    """This rank's part of what changes with the steps, by a name with one of the prefixes above."""
    optimizer: torch.optim.Optimizer
    counters: Mapping[str, Any]
    """JSON values that change from step to step."""
    ranks: Ranks
    device: torch.device


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Manifest of a checkpoint, which stands beside its tensors."""

    step: int
    """Updates that are done; the next one has this index."""
    identity: Mapping[str, str]
    """Config hash, parent and the like: a checkpoint of anything else is refused."""
    ranks: int
    counters: Mapping[str, Any]
    """Counters of the training: optimizer steps, skipped steps, steered betas."""
    files: Mapping[str, str]
    """sha256 of each file, by name."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """JSON values of whoever drives the learner, handed back as they were."""


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the folder of the last complete checkpoint; None before the first."""
    return next(reversed(checkpoints_in(folder).values()), None)


def save_checkpoint(
    state: TrainingState,
    folder: Path,
    step: int,
    *,
    identity: Mapping[str, str],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint and remove the ones before it. All ranks call this together.

    On each disk that ranks write to, a whole manifest stands beside the files of the ranks there.
    """
    from safetensors.torch import save_file

    ranks = state.ranks
    with ExitStack() as stack:
        new_folder: Path | None = None
        if ranks.rank == ranks.keeper:
            clear_abandoned(folder / STAGING)
            new_folder = stack.enter_context(staged(folder / STAGING))
        staging = ranks.exchange(new_folder)[ranks.keeper]
        assert staging is not None
        path = staging / file_of(ranks.rank)
        save_file(_tensors(state), path)
        sync(path)
        files = ranks.exchange((path.name, _sha256(path)))
        if ranks.rank != ranks.keeper:
            return
        manifest = Checkpoint(
            step=step,
            identity=dict(identity),
            ranks=ranks.size,
            counters=dict(state.counters),
            files=dict(files),
            extra=dict(extra or {}),
        )
        (staging / CHECKPOINT).write_text(json.dumps(asdict(manifest), indent=1, sort_keys=True))
        sync(staging / CHECKPOINT)
        publish_checkpoint(staging, checkpoint_at(folder, step))


def restore_checkpoint(
    state: TrainingState, folder: Path, *, identity: Mapping[str, str]
) -> Checkpoint | None:
    """Copy the newest checkpoint into the weights and the optimizer; return it, or None if there is none.

    The counters are the caller's to take over. All ranks call this together, and none of them changes
    anything before all have read and verified their part.

    Raises:
        SnapshotError: it is torn, of another round or configuration, or of another number of ranks; the
            state is as it was.
    """
    path = newest_checkpoint(folder)
    if path is None:
        return None
    problem: SnapshotError | None = None
    try:
        checkpoint, tensors = _read(state, path, identity)
    except SnapshotError as error:
        problem = error
    for refused in state.ranks.exchange(problem):
        if refused is not None:
            raise refused
    _apply(state, tensors)
    return checkpoint


def file_of(rank: int) -> str:
    """Return the name of one rank's file."""
    return f"rank-{rank}.safetensors"


def publish_checkpoint(staging: Path, final: Path) -> None:
    """Give a complete folder its name, then remove every other checkpoint."""
    sync(staging)
    shutil.rmtree(final, ignore_errors=True)
    replace(staging, final)
    for other in checkpoints_in(final.parent).values():
        if other != final:
            shutil.rmtree(other)


def _read(
    state: TrainingState, path: Path, identity: Mapping[str, str]
) -> tuple[Checkpoint, dict[str, Tensor]]:
    """Read this rank's part, verified against the manifest and against the state."""
    from safetensors.torch import load_file

    try:
        checkpoint = Checkpoint(**json.loads((path / CHECKPOINT).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise _torn(path / CHECKPOINT, str(error)) from error
    ranks = state.ranks
    wanted = {**identity, "ranks": str(ranks.size)}
    saved = {**checkpoint.identity, "ranks": str(checkpoint.ranks)}
    if other := [name for name in wanted | saved if wanted.get(name) != saved.get(name)]:
        raise SnapshotError(
            f"the checkpoint is of another {other[0]}: {saved.get(other[0])!r}, not "
            f"{wanted.get(other[0])!r}",
            where=str(path),
            cause="the campaign or the production snapshot changed since it was written",
            remedy="remove the folder: the round then starts from its parent",
        )
    file = path / file_of(ranks.rank)
    if not file.is_file() or checkpoint.files.get(file.name) != _sha256(file):
        raise _torn(file, "its bytes are not those that were written")
    tensors = load_file(file)
    if misfit := _misfit(state, tensors):
        raise _torn(file, f"{misfit} does not fit the learner")
    return checkpoint, tensors


def _torn(path: Path, cause: str) -> SnapshotError:
    return SnapshotError(
        "the checkpoint cannot be read",
        where=str(path),
        cause=cause,
        remedy="remove its folder: the round then starts from its parent",
    )


def _misfit(state: TrainingState, tensors: Mapping[str, Tensor]) -> str | None:
    """Name the first tensor that is missing, too many, or of another shape."""
    current = {**state.weights, **_generators(state.device)}
    expected = {name: tensor.shape for name, tensor in current.items()}
    shapes = {name: t.shape for name, t in tensors.items() if not name.startswith(MOMENTS)}
    trained = [local(parameter).shape for parameter in _optimized(state)]
    for name in tensors.keys() - shapes.keys():
        _, number, key = name.split("/", 2)
        part = trained[int(number)] if int(number) < len(trained) else torch.Size([0])
        expected[name] = moment_shape(key, part)
        shapes[name] = tensors[name].shape or expected[name]
    other = [name for name in expected | shapes if expected.get(name) != shapes.get(name)]
    return other[0] if other else None


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    """Collect all tensors of this rank that change while it learns."""
    tensors = dict(state.weights)
    for index, parameter in enumerate(_optimized(state)):
        for key, value in _saved_moments(state.optimizer, parameter).items():
            tensors[f"{MOMENTS}{index}/{key}"] = value
    tensors |= _generators(state.device)
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _generators(device: torch.device) -> dict[str, Tensor]:
    states = {f"{GENERATOR}cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states[f"{GENERATOR}cuda"] = torch.cuda.get_rng_state(device)
    return states


def _optimized(state: TrainingState) -> list[nn.Parameter]:
    """List the trained parameters in the optimizer's order, which is that of its construction."""
    groups = state.optimizer.param_groups
    return [parameter for group in groups for parameter in group["params"]]


@torch.no_grad()
def _apply(state: TrainingState, tensors: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint into the tensors of the state: the optimizer holds on to these."""
    for name, weight in state.weights.items():
        weight.copy_(tensors[name])
    trained = _optimized(state)
    state.optimizer.state.clear()
    moments: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if name.startswith(MOMENTS):
            _, number, key = name.split("/", 2)
            moments[int(number)][key] = tensor
    for index, saved in moments.items():
        _restore_moments(state.optimizer, trained[index], saved)
    torch.set_rng_state(tensors[f"{GENERATOR}cpu"])
    if state.device.type == "cuda":
        torch.cuda.set_rng_state(tensors[f"{GENERATOR}cuda"], state.device)


def _saved_moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Return the moments of one weight; of a sharded one this rank's part."""
    if (in_bytes := eight_bit(optimizer)) is not None:
        return in_bytes.saved(parameter)
    return {key: local(value) for key, value in optimizer.state[parameter].items()}


def _restore_moments(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, saved: Mapping[str, Tensor]
) -> None:
    """Take the moments of one weight."""
    if (in_bytes := eight_bit(optimizer)) is not None:
        in_bytes.restore(parameter, saved)
        return
    for key, tensor in saved.items():
        optimizer.state[parameter][key] = _moment(parameter, tensor)


def _moment(parameter: nn.Parameter, saved: Tensor) -> Tensor:
    """Lay out a moment like its parameter; a step count, which is a scalar, stays as it is."""
    if not saved.dim():
        return saved.clone()
    moment = torch.zeros_like(parameter)
    local(moment).copy_(saved)
    return moment


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

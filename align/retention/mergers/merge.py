"""Merge of snapshots, whose weights a policy takes tensor by tensor.

Every rank reads the files and computes the whole merge, so ranks agree without talking to each other, as
they do for a point between two snapshots.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align.config.mergers.settings import MergeConfig
from align.learner.model.adapter import CONFIG
from align.learner.references import FolderOf
from align.retention.mergers.base import WeightStack, merger
from align.retention.mergers.blocks import num_layers
from rollouts.errors import RunError
from rollouts.types import SnapshotId

if TYPE_CHECKING:
    from align.learner.model.policy import Policy


@dataclass(frozen=True, kw_only=True, slots=True)
class Merge:
    """Weights that a merger makes of snapshots: a `Beginning` of a policy."""

    config: MergeConfig
    base: SnapshotId
    past: tuple[SnapshotId, ...]
    """Earlier accepted rounds that are merged too, oldest first; the last is the parent."""
    anchor: SnapshotId
    """Snapshot that the trained weights are merged with."""
    runs: tuple[SnapshotId, ...]
    """Trained weights, one snapshot for each run of the round."""
    share: float | None
    block_shares: tuple[float, ...] = ()
    seed: int = 0

    @property
    def snapshots(self) -> tuple[SnapshotId, ...]:
        """Snapshots that are read, each once."""
        base = (self.base,) if self.config.reads_base else ()
        return tuple(dict.fromkeys((*base, *self.past, self.anchor, *self.runs)))

    def load(self, policy: Policy, parent: SnapshotId, folder_of: FolderOf) -> None:
        """Load the merged weights into a policy."""
        policy.take(self.tensors(folder_of), f"{self.config.name} merge")

    def tensors(self, folder_of: FolderOf) -> Iterator[tuple[str, Tensor]]:
        """Yield the merged tensors by their names in the files of snapshots.

        Raises:
            RunError: the snapshots have different tensors.
        """
        function = merger(self.config.name)
        with ExitStack() as files:
            weights = {s: SnapshotWeights.open(folder_of(s), files) for s in self.snapshots}
            trained = weights[self.runs[0]]
            layers = num_layers(trained.places)
            for name in trained.places:
                stack = self._stack(name, weights, layers)
                merged = function(stack, self.config)
                yield name, merged if stack.trained.is_floating_point() else stack.trained

    def _stack(
        self, name: str, weights: Mapping[SnapshotId, SnapshotWeights], layers: int
    ) -> WeightStack:
        """Read one tensor of all snapshots."""
        order = (*self.past, self.anchor, *self.runs)
        adapters = (weights[s] for s in order if not weights[s].is_bare)
        like = next(adapters, weights[self.runs[0]])
        read = {snapshot: files.read(name, like) for snapshot, files in weights.items()}
        shape = read[self.runs[0]].shape
        for snapshot, tensor in read.items():
            if tensor.shape != shape:
                raise misfit(snapshot, name, f"{list(tensor.shape)} instead of {list(shape)}")
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return WeightStack(
            name=name,
            base=read[self.base if self.config.reads_base else self.anchor],
            past=[read[snapshot] for snapshot in self.past],
            anchor=read[self.anchor],
            runs=[read[snapshot] for snapshot in self.runs],
            share=1.0 if self.share is None else self.share,
            block_shares=self.block_shares,
            layers=layers,
            seed=int.from_bytes(digest[:4], "big"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotWeights:
    """Open files of one snapshot."""

    name: str
    """Name of its folder, for errors."""
    places: Mapping[str, Any]
    """Open file of each tensor, in the order of the files."""
    is_bare: bool
    """True for the base of a policy whose other snapshots are adapters; see `read`."""

    @classmethod
    def open(cls, folder: Path, files: ExitStack) -> SnapshotWeights:
        """Open the safetensors files of a folder; ``files`` closes them."""
        from safetensors import safe_open

        places: dict[str, Any] = {}
        for file in sorted(folder.glob("*.safetensors")):
            opened = files.enter_context(safe_open(file, "pt"))
            places |= dict.fromkeys(opened.keys(), opened)
        return cls(name=folder.name, places=places, is_bare=not (folder / CONFIG).is_file())

    def read(self, name: str, like: SnapshotWeights) -> Tensor:
        """Return a tensor in float32.

        Args:
            like: adapter whose coordinates a snapshot without an adapter is expressed in: its update is
                zero, as that of the factors ``(A, 0)``.

        Raises:
            RunError: there is no such tensor.
        """
        if name in self.places:
            tensor: Tensor = self.places[name].get_tensor(name)
            return tensor.float() if tensor.is_floating_point() else tensor
        if self.is_bare and ".lora_A." in name:
            return like.read(name, like)
        if self.is_bare and ".lora_B." in name:
            return torch.zeros_like(like.read(name, like))
        raise misfit(self.name, name, "absent")


def check_alike(folders: Iterable[Path]) -> None:
    """Compare names and shapes of the tensors of snapshots, from the headers of their files.

    Folders without an adapter are passed over where others have one.

    Raises:
        RunError: two of them cannot be merged.
    """
    with ExitStack() as files:
        snapshots = [SnapshotWeights.open(folder, files) for folder in folders]
        if not all(weights.is_bare for weights in snapshots):
            snapshots = [weights for weights in snapshots if not weights.is_bare]
        shapes = [
            {name: file.get_slice(name).get_shape() for name, file in weights.places.items()}
            for weights in snapshots
        ]
        for weights, other in zip(snapshots[1:], shapes[1:], strict=True):
            names = sorted(shapes[0].keys() | other.keys())
            for name in names:
                if shapes[0].get(name) != other.get(name):
                    raise misfit(
                        weights.name,
                        name,
                        f"{other.get(name, 'absent')} instead of {shapes[0].get(name, 'none')}",
                    )


def misfit(snapshot: str, name: str, what: str) -> RunError:
    """Return the error of snapshots that cannot be merged."""
    return RunError(
        f"the weights of snapshot {snapshot[:16]} cannot be merged: {name!r} is {what}",
        where="merge",
        cause="it is of another model, or an adapter of other layers or of another rank",
        remedy="set merge to false in this round, or name the rounds to merge in merge.rounds",
    )

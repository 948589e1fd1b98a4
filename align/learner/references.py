"""Frozen snapshots that a round refers to: anchors, references and teachers, loaded when a row needs them.

`References.resolve` says which snapshot a name means for a row, and `ReferenceModels.outputs` what that
snapshot says. There is one forward pass per sample, however many snapshots a campaign has collected. Every
snapshot is named by its content hash, so a resumed run is held to exactly the same weights.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from align.algorithms.micro_batch import MicroBatch
from align.algorithms.outputs import Outputs
from align.algorithms.rows import Row
from align.learner.model.adapter import TRAINED, dropout
from align.learner.model.loading import load_model
from align.learner.model.policy import Policy, completion_outputs
from align.learner.ranks.ranks import Ranks
from align.learner.teachers.teacher import MODEL
from rollouts.types import SnapshotId

FolderOf = Callable[[SnapshotId], Path]
"""Function that finds the folder of a snapshot."""
PlaceOf = Callable[[Path], Path]
"""Function that finds a file or folder of the driver's on the node of a rank."""
CACHE_BYTES = 2 << 30
"""Host memory that full-weight anchors may keep resident; beyond it the least recently used goes."""


def here(path: Path) -> Path:
    """Return the path itself: the place of a file in the driver's own process."""
    return path


class Beginning(Protocol):
    """Weights that a policy begins with, made of snapshots. It travels to other processes."""

    @property
    def snapshots(self) -> Collection[SnapshotId]:
        """Snapshots that the weights are made of, besides the parent."""
        ...

    def load(self, policy: Policy, parent: SnapshotId, folder_of: FolderOf) -> None:
        """Load the weights into a policy. All ranks call this; each gets the same weights."""
        ...


class PolicyTask(Protocol):
    """Computation with a policy, whose weights it may change. It travels to other processes."""

    @property
    def snapshots(self) -> Collection[SnapshotId]:
        """Snapshots that the computation reads."""
        ...

    def __call__(self, policy: Policy, ranks: Ranks, folder_of: FolderOf) -> Any:
        """Return the result, the same on all ranks."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Toward:
    """A point on the straight line from the parent to another snapshot."""

    snapshot: SnapshotId
    share: float
    """0 is the parent, 1 the snapshot."""

    @property
    def snapshots(self) -> tuple[SnapshotId, ...]:
        """The other snapshot."""
        return (self.snapshot,)

    def load(self, policy: Policy, parent: SnapshotId, folder_of: FolderOf) -> None:
        """Load the weights of the point."""
        policy.blend(folder_of(parent), folder_of(self.snapshot), self.share)


@dataclass(frozen=True, kw_only=True, slots=True)
class References:
    """The snapshots a round may name."""

    base: SnapshotId
    parent: SnapshotId
    rounds: Mapping[str, SnapshotId] = field(default_factory=dict)
    """Accepted rounds by name."""
    beginning: Beginning | None = None
    """Weights that the policy begins with; None: the parent's."""
    over_base: bool = False
    """True if the round learns over the base alone, as an adapter of a bank does: its parent, as anchors
    and references name it, is the base."""

    def resolve(self, to: str, row: Row) -> SnapshotId:
        """Return the snapshot that ``to`` means for this row; a model folder stands for itself."""
        if to == "owner":
            assert row.owner is not None, "a past prompt without an owner reached the learner"
            return row.owner
        return self.named(to)

    def named(self, to: str) -> SnapshotId:
        """Return the snapshot that ``to`` means where it is the same for every row; see `resolve`."""
        if to.startswith("round:"):
            return self.rounds[to.removeprefix("round:")]
        if to.startswith(MODEL):
            return to
        return self.base if to == "base" or self.over_base else self.parent


class ReferenceModels:
    """Frozen snapshots by content hash; full models in an LRU, adapters over the policy's base."""

    def __init__(
        self,
        policy: Policy,
        folder_of: FolderOf,
        place_of: PlaceOf = here,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._policy, self._folder_of, self._cache_bytes = policy, folder_of, cache_bytes
        self._place_of = place_of
        self._models: OrderedDict[SnapshotId, Any] = OrderedDict()
        self._adapters: set[SnapshotId] = set()

    @torch.no_grad()
    def outputs(self, snapshot: SnapshotId, micro: MicroBatch, temperature: float) -> Outputs:
        """Run the snapshot over the completion tokens, without gradient."""
        bank = self._policy.bank
        if bank is not None and not snapshot.startswith(MODEL):
            with bank.at(self._folder_of(snapshot), micro.rows):
                return completion_outputs(
                    self._policy.model, micro, dtype=self._policy.dtype, temperature=temperature
                )
        if self._policy.config.snapshot_kind == "adapter" and not snapshot.startswith(MODEL):
            return self._adapter_outputs(snapshot, micro, temperature)
        return completion_outputs(
            self._model(snapshot), micro, dtype=self._policy.dtype, temperature=temperature
        )

    def hold(self, snapshots: Iterable[SnapshotId]) -> bool:
        """Load full-weight snapshots now; tell if all are in memory then.

        No pass may load one beside another: transformers changes the process's default dtype meanwhile.
        """
        wanted = sorted(set(snapshots))
        for snapshot in wanted:
            self._model(snapshot)
        return all(snapshot in self._models for snapshot in wanted)

    def copy(self, snapshot: SnapshotId) -> Any:
        """Load another model with the snapshot's full weights, in float32."""
        folder = self._folder(snapshot)
        return load_model(folder, self._policy.config, self._policy.device, torch.float32)

    def _model(self, snapshot: SnapshotId) -> Any:
        if snapshot in self._models:
            self._models.move_to_end(snapshot)
            return self._models[snapshot]
        model = load_model(
            self._folder(snapshot), self._policy.config, self._policy.device, self._policy.dtype
        )
        self._models[snapshot] = model.requires_grad_(False)
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        while len(self._models) > 1 and size * len(self._models) > self._cache_bytes:
            self._models.popitem(last=False)
        return model

    def _folder(self, snapshot: SnapshotId) -> Path:
        if snapshot.startswith(MODEL):
            return self._place_of(Path(snapshot.removeprefix(MODEL)).expanduser())
        return self._folder_of(snapshot)

    def _adapter_outputs(
        self, snapshot: SnapshotId, micro: MicroBatch, temperature: float
    ) -> Outputs:
        model, folder = self._policy.model, self._folder_of(snapshot)
        run = partial(
            completion_outputs, model, micro, dtype=self._policy.dtype, temperature=temperature
        )
        # A pass that learns is under way around this one, and its modes come back with its end.
        with dropout(model, active=False):
            if not (folder / "adapter_config.json").exists():
                with model.disable_adapter():
                    return run()
            if snapshot not in self._adapters:
                model.load_adapter(folder, adapter_name=snapshot, is_trainable=False)
                self._adapters.add(snapshot)
        return self.adapter_outputs(snapshot, micro, temperature)

    @torch.no_grad()
    def adapter_outputs(self, adapter: str, micro: MicroBatch, temperature: float) -> Outputs:
        """Run one of the adapters over the policy's base, by its name, without gradient."""
        model = self._policy.model
        with dropout(model, active=False):
            model.set_adapter(adapter, inference_mode=True)
            try:
                return completion_outputs(
                    model, micro, dtype=self._policy.dtype, temperature=temperature
                )
            finally:
                model.set_adapter(TRAINED)
